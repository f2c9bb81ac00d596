"""A step without data, operation by operation: the calls of one that runs on the device "meta". Worker side.

The project's kernels are recorded and declare what they move (`kernels.launch.runtime.Budget`). Calls of a library are
seen by a dispatch mode, inside the project's ops as well: the bytes of their tensors, each once but for _TOUCHES, and
FLOPs by torch.utils.flop_counter. Views cost nothing.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from bench.traffic.types import Direction, Operation
from kernels.launch.runtime import FUNCTIONS, Call, recorded

ARCHITECTURE = "sm_90"  # whose launches are counted: it decides into how many partial sums a sum is split

_ATEN = torch.ops.aten

# How often libraries touch an argument, where that is not once: BatchNorm needs sums over all values before it can use
# them, and of some arguments only the shape is looked at.
_TOUCHES: dict[Any, dict[str, int]] = {
    _ATEN.native_batch_norm: {"input": 2},  # both in training: see _calls
    _ATEN._native_batch_norm_legit: {"input": 2},
    _ATEN.native_batch_norm_backward: {"grad_out": 2, "input": 2},
    _ATEN.max_pool2d_with_indices_backward: {"self": 0},
}
_LAID_OUT = (_ATEN.convolution, _ATEN.convolution_backward)  # on "meta" they forget the memory format of their input
_TRAINING = 5  # place of this argument of both
_FREE = ("empty", "new_empty")  # beginnings of the names of ops that make a tensor without writing it


def step(network: nn.Module, images: Tensor, *, train: bool) -> tuple[Operation, ...]:
    """The operations of a forward and, in training, a backward pass of a residual network, plain or fused."""
    with recorded(ARCHITECTURE) as calls, _Meter(calls) as meter:
        _Step(network, meter, train=train).run(images)
    return tuple(meter.operations)


def blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The residual blocks by name, in order."""
    return {
        f"{stage}.{name}": block
        for stage, module in network.named_children()
        if stage.startswith("layer")
        for name, block in module.named_children()
    }


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what every op and every launch moves."""

    def __init__(self, calls: list[Call]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self._part = "stem"
        self._direction: Direction = "forward"
        self._calls, self._noted = calls, 0

    def enter(self, part: str, direction: Direction) -> None:
        """Count what comes next as another part of the network, or direction."""
        self.note_launches()
        self._part, self._direction = part, direction

    def note_launches(self) -> None:
        """Note the launches that have been recorded since the last time."""
        fresh, self._noted = self._calls[self._noted :], len(self._calls)
        for call in fresh:
            flops = call.budget.flops if call.budget else 0
            self._note(call.kernel.__name__.removeprefix("_"), list(call.tensors), call.bytes, flops)

    def _note(self, name: str, tensors: list[Tensor], moved: int, flops: int) -> None:
        self.operations.append(
            Operation(
                part=self._part,
                direction=self._direction,
                name=name,
                shape=tuple(max(tensors, key=Tensor.numel).shape),
                bytes=moved,
                flops=flops,
            )
        )

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        self.note_launches()
        with self:  # an op of ours, and one that is made of others, is what it calls
            if op.name() in FUNCTIONS:
                return FUNCTIONS[op.name()](*args, **kwargs)
            result = op.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        out = op(*args, **kwargs)
        if op.overloadpacket in _LAID_OUT:
            out = tree_map_only(Tensor, _channels_last, out)
        for name, moved, flops in _calls(op, args, kwargs, out):
            if moved:
                self._note(name, [leaf for leaf in tree_leaves((args, out)) if isinstance(leaf, Tensor)], moved, flops)
        return out


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x  # noqa: PLR2004 - [N, C, H, W]


def _calls(op: OpOverload, args: Any, kwargs: Any, out: Any) -> Iterator[tuple[str, int, int]]:  # noqa: ANN401
    """The library calls of an op of torch: name, bytes and FLOPs."""
    name, returns = op._schema.name.removeprefix("aten::"), [result.alias_info for result in op._schema.returns]
    if op.overloadpacket is _ATEN.convolution_backward:
        yield from _convolution_backward(args, out)
        return
    view = torch.Tag.inplace_view in op.tags or any(alias and not alias.is_write for alias in returns)
    if view or name.startswith(_FREE):
        return
    touches = _TOUCHES.get(op.overloadpacket, {})
    if op.overloadpacket in (_ATEN.native_batch_norm, _ATEN._native_batch_norm_legit) and not args[_TRAINING]:
        touches = {}
    moved = 0
    for place, argument in enumerate(op._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        written = argument.alias_info is not None and argument.alias_info.is_write
        moved += (touches.get(argument.name, 1) + written) * _bytes(value)
    results = out if isinstance(out, tuple | list) else (out,)
    moved += sum(_bytes(result) for result, alias in zip(results, returns, strict=True) if alias is None)
    if op.overloadpacket is _ATEN.convolution:
        x, filters, _, stride, *_ = args
        moved += covered(x, filters, stride) - _bytes(x)
    flops_of = flop_registry.get(op.overloadpacket)
    yield name, moved, flops_of(*args, **kwargs, out_val=out) if flops_of else 0


def _convolution_backward(args: Any, out: Any) -> Iterator[tuple[str, int, int]]:  # noqa: ANN401
    """Up to two products, as asked for: each reads the gradient of the result."""
    gradient, x, filters, *rest, output_mask = args
    others = (("input gradient", _bytes(filters)), ("filter gradient", covered(x, filters, rest[1])))
    for place, (name, other) in enumerate(others):
        if output_mask[place]:
            alone = [index == place for index in range(len(output_mask))]
            flops = flop_registry[_ATEN.convolution_backward](gradient, x, filters, *rest, alone, out_val=out)
            yield f"convolution, {name}", _bytes(gradient) + other + _bytes(out[place]), flops


def covered(x: Tensor, filters: Tensor, stride: Sequence[int]) -> int:
    """Bytes of the pixels of x [N, C, H, W] that windows of filters cover: not all where the stride is larger."""
    share = math.prod(min(1.0, size / step) for size, step in zip(filters.shape[2:], stride, strict=True))
    return round(x.nbytes * share)


def _bytes(value: Any) -> int:  # noqa: ANN401 - an argument or a result of an op
    """Bytes in memory of the tensors in a value: an expanded dimension is there once."""
    return sum(_stored(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _stored(x: Tensor) -> int:
    return x.itemsize * math.prod(size for size, step in zip(x.shape, x.stride(), strict=True) if step)


class _Step:
    """A step cut into the parts of the network, so that each operation is known to belong to one."""

    def __init__(self, network: nn.Module, meter: _Meter, *, train: bool) -> None:
        self.network, self.meter, self.train = network, meter, train
        self.part = "stem"
        self.pieces: list[tuple[str, Tensor, Tensor]] = []  # of each part its name, input and result
        self.input: Tensor

    def run(self, images: Tensor) -> None:
        """Run the step forward and, in training, backward."""
        named = blocks(self.network)
        *_, last = named.values()
        handles = [
            *(block.register_forward_pre_hook(partial(self._enter_block, name)) for name, block in named.items()),
            last.register_forward_hook(self._leave_last),
        ]
        self.input = images
        try:
            with torch.set_grad_enabled(self.train):
                logits = self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        self.pieces.append((self.part, self.input, logits))
        if self.train:
            self._backward()
        self.meter.note_launches()

    def _enter_block(self, name: str, _module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return self._cut(name, inputs[0])

    def _leave_last(self, _module: nn.Module, _inputs: tuple[Tensor], out: Tensor) -> Tensor:
        return self._cut("head", out)

    def _cut(self, part: str, x: Tensor) -> Tensor:
        """End the part before with x, and begin `part` with the tensor that is returned."""
        self.pieces.append((self.part, self.input, x))
        self.meter.enter(part, "forward")
        self.part, self.input = part, x.detach().requires_grad_(self.train)
        return self.input

    def _backward(self) -> None:
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        gradient = torch.empty_like(self.pieces[-1][2])
        for part, start, end in reversed(self.pieces):
            self.meter.enter(part, "backward")
            inputs = [*parameters, *([start] if start.requires_grad else [])]
            *_, gradient = torch.autograd.grad(end, inputs, gradient, allow_unused=True)
