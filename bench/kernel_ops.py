"""Which fused ops a network is made of, and what each moves between memory and the processors. Worker side."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import get_args

import torch
from torch import Tensor, nn

from bench.kernel_types import Direction, Op, Request, Shape
from bench.limits import DTYPES
from bench.types import Device
from kernels.kernel import Kernel, Norm, Operands, make_operands
from kernels.launch import Pass
from kernels.runtime import Call, recorded
from kernels.table import KERNELS, KERNELS_BY_NAME
from resnet.model import BasicBlock, Bottleneck, build_model

MODELS = ("resnet50", "resnet18")  # where nobody says; the first has nearly every shape
BATCH_SIZES: dict[Device, int] = {"cuda": 256, "cpu": 8}

PLAIN = "bn"  # in no fused network, but what the other forms are to be compared with

# The kind of pass of a launch: by the kernel, and by the form where it walks another tile there.
_KINDS: dict[str, Pass] = {
    "_partial_statistics": "statistics",
    "_apply": "apply",
    "_reduce": "reduce",
    "_gradient": "gradient",
    "_pool": "pool",
}
_SUFFIXES = {"dual": " dual", "stem": " pool"}


def layers(model: str, batch_size: int, image_size: int) -> list[tuple[str, Shape]]:
    """The fused ops of one step of a network in the order of the forward pass, as (form, shape of x).

    The BatchNorm of a projected shortcut has no op of its own: it is half of the block's "dual".

    Raises:
        ValueError: unknown model.
    """
    shapes: dict[nn.Module, Shape] = {}

    def remember(norm: nn.Module, arguments: tuple[Tensor]) -> None:
        n, channels, height, width = arguments[0].shape
        shapes[norm] = (n, channels, height, width)

    with torch.device("meta"):
        network = build_model(model)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(remember)
        network(torch.empty(batch_size, 3, image_size, image_size))
    found = [("stem", shapes[network.bn1])]
    for block in network.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            *inner, last = (norm for name, norm in block.named_children() if name.startswith("bn"))
            found += [("bn+relu", shapes[norm]) for norm in inner]
            found.append(("bn+residual+relu" if block.downsample is None else "dual", shapes[last]))
    return found


def filled(request: Request, device: Device) -> Request:
    """The request for a device, with nothing left out. Networks that nobody named are left out beside shapes."""
    return replace(
        request,
        device=device,
        models=request.models or (() if request.shapes else MODELS),
        batch_size=request.batch_size or BATCH_SIZES[device],
    )


def ops(request: Request) -> tuple[Op, ...]:
    """Every op of a filled request once for each dtype: shapes asked for first, then networks, then plain BatchNorm.

    Raises:
        ValueError: unknown model or form, or a form that occurs nowhere.
    """
    assert request.batch_size is not None  # noqa: S101 - see `filled`
    unknown = [form for form in request.forms if form not in KERNELS_BY_NAME]
    if unknown:
        raise ValueError(f"unknown form {', '.join(unknown)}: choose of {', '.join(KERNELS_BY_NAME)}")
    counts: dict[tuple[str, Shape], dict[str, int]] = {
        (row.name, shape): {} for shape in request.shapes for row in KERNELS
    }
    for model in request.models:
        for form, shape in layers(model, request.batch_size, request.image_size):
            count = counts.setdefault((form, shape), {})
            count[model] = count.get(model, 0) + 1
    for _, shape in list(counts):
        counts.setdefault((PLAIN, shape), {})
    wanted = [cell for cell in counts if not request.forms or cell[0] in request.forms]
    if not wanted:
        raise ValueError(
            f"{', '.join(request.forms)} occurs in none of {', '.join(request.models)}: add --shape N,C,H,W"
        )
    return tuple(
        Op(form=form, shape=shape, dtype=dtype, mode=request.mode, layers=counts[form, shape])
        for dtype, (form, shape) in product(request.dtypes, wanted)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """One launch of an op, as it would be on some architecture, with operands on the device "meta"."""

    kind: Pass
    call: Call

    @property
    def tensors(self) -> Iterator[Tensor]:
        return (argument for argument in self.call.arguments if isinstance(argument, Tensor))

    @property
    def bytes(self) -> int:
        """Each tensor is read or written once; what windows or programs read again comes from a cache."""
        return sum(tensor.nbytes for tensor in self.tensors)


def operands_of(op: Op, device: str, *, batch_size: int | None = None, seed: int = 0) -> Operands:
    """Random operands, channels_last."""
    shape = (batch_size or op.shape[0], *op.shape[1:])
    return make_operands(KERNELS_BY_NAME[op.form], shape, DTYPES[op.dtype], device, seed=seed)


def mapped(operands: Operands, change: Callable[[Tensor], Tensor]) -> Operands:
    """The same operands with every tensor changed, as leaves of their own."""

    def leaf(value: Tensor | None) -> Tensor | None:
        return None if value is None else change(value.detach()).requires_grad_(value.requires_grad)

    def norm(of: Norm) -> Norm:
        return Norm(leaf(of.weight), leaf(of.bias), leaf(of.running_mean), leaf(of.running_var), of.eps)

    x, of_x, z, of_z = operands
    return Operands(change(x.detach()).requires_grad_(), norm(of_x), leaf(z), None if of_z is None else norm(of_z))


def launches(op: Op, architecture: str | None) -> dict[Direction, tuple[Launched, ...]]:
    """The launches of the forward and of the backward call, on an architecture or (None) on this machine."""
    operands = operands_of(op, "meta")
    with recorded(architecture) as forward:
        y = KERNELS_BY_NAME[op.form].run(operands, op.mode == "train")
    with recorded(architecture) as backward:
        torch.autograd.grad(y, operands.differentiable(), torch.empty_like(y))
    return {"forward": _named(forward, op.form), "backward": _named(backward, op.form)}


def _named(calls: list[Call], form: str) -> tuple[Launched, ...]:
    return tuple(Launched(kind=_kind(call.kernel.__name__, form), call=call) for call in calls)


def _kind(kernel: str, form: str) -> Pass:
    kind = _KINDS[kernel]
    return next((name for name in get_args(Pass) if name == kind + _SUFFIXES.get(form, "")), kind)


def floor_bytes(op: Op, direction: Direction) -> int:
    """The least that an op moves where no cache holds its tensors.

    A sum over all of a tensor has to be known before the pass that uses it begins: in training every tensor that is
    normalised is read twice, and in backward the gradient of the result too. Every result is written once. What a
    kernel chooses to keep (masks, places of maxima, partial sums) and what has a value a channel is not counted.
    """
    row = KERNELS_BY_NAME[op.form]
    x = operands_of(op, "meta").x
    passes, inputs, normalised = (2 if op.mode == "train" else 1), 1 + row.second, 1 + row.second_norm
    if direction == "forward":
        return ((passes - 1) * normalised + inputs) * x.nbytes + _result_bytes(row, op)
    return (passes * normalised + inputs) * x.nbytes + passes * _result_bytes(row, op)


def _result_bytes(row: Kernel, op: Op) -> int:
    return row.oracle(operands_of(op, "meta"), op.mode == "train").nbytes
