"""Which fused ops a network is made of, and what each moves between memory and the processors. Worker side."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from bench.kernels.types import Direction, Op, Request, Shape
from bench.machine.ceilings import DTYPES
from bench.types import Device
from kernels.bottleneck.forms import BLOCKS, BlockForm, BlockOperands
from kernels.bottleneck.parts import CONV2
from kernels.kernel import Kernel, Operands
from kernels.launch.passes import Pass
from kernels.launch.runtime import Budget, Call, recorded
from kernels.table import FORMS
from resnet.models.resnet import BasicBlock, Bottleneck, build_model

MODELS = ("resnet50", "resnet18")  # where nobody says; the first has nearly every shape
BATCH_SIZES: dict[Device, int] = {"cuda": 256, "cpu": 8}

PLAIN = "bn"  # in no fused network, but what the other forms are to be compared with

Function = Callable[[Any, bool], Tensor]  # of the operands of its form, and whether it trains
Of = TypeVar("Of", bound=Operands | BlockOperands)

# The kind of pass of a launch: by the kernel, and by the form where it walks another tile there. Other launches are
# called like their kernels.
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

    The BatchNorm of a projected shortcut has no op of its own: it is half of the block's "dual". Behind them the
    network's bottlenecks, each a whole block in one op.

    Raises:
        ValueError: unknown model.
    """
    shapes: dict[nn.Module, Shape] = {}

    def remember(module: nn.Module, arguments: tuple[Tensor]) -> None:
        n, channels, height, width = arguments[0].shape
        shapes[module] = (n, channels, height, width)

    with torch.device("meta"):
        network = build_model(model)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | Bottleneck):
                module.register_forward_pre_hook(remember)
        network(torch.empty(batch_size, 3, image_size, image_size))
    found = [("stem", shapes[network.bn1])]
    blocks = []
    for block in network.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            *inner, last = (norm for name, norm in block.named_children() if name.startswith("bn"))
            found += [("bn+relu", shapes[norm]) for norm in inner]
            found.append(("bn+residual+relu" if block.downsample is None else "dual", shapes[last]))
        if isinstance(block, Bottleneck):
            blocks.append((_block_form(block), shapes[block]))
    return found + blocks


def _block_form(block: Bottleneck) -> str:
    inside, outside = (conv.out_channels / block.conv1.in_channels for conv in (block.conv2, block.conv3))
    kind = (inside, outside, block.conv2.stride[0], block.downsample is not None)
    return next(form.name for form in BLOCKS if (form.inside, form.outside, form.stride, form.projected) == kind)


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

    A block at a shape that has too few channels for it is left out.

    Raises:
        ValueError: unknown model or form, or a form that occurs nowhere.
    """
    assert request.batch_size is not None  # noqa: S101 - see `filled`
    unknown = [form for form in request.forms if form not in FORMS]
    if unknown:
        raise ValueError(f"unknown form {', '.join(unknown)}: choose of {', '.join(FORMS)}")
    counts: dict[tuple[str, Shape], dict[str, int]] = {
        (form, shape): {} for shape in request.shapes for form in FORMS if fits(form, shape)
    }
    for model in request.models:
        for form, shape in layers(model, request.batch_size, request.image_size):
            count = counts.setdefault((form, shape), {})
            count[model] = count.get(model, 0) + 1
    for form, shape in list(counts):
        if isinstance(FORMS[form], Kernel):
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


def fits(form: str, shape: Shape) -> bool:
    """Whether a form can be at a shape: a block needs channels in its middle."""
    row = FORMS[form]
    return not isinstance(row, BlockForm) or shape[1] * row.inside >= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """One launch of an op, as it would be on some architecture, with operands on the device "meta"."""

    kind: str  # a `kernels.launch.passes.Pass`, or the name of a kernel that is none
    call: Call

    @property
    def bytes(self) -> int:
        return self.call.bytes

    @property
    def flops(self) -> int:
        """Of products of matrices."""
        return 0 if self.call.budget is None else self.call.budget.flops


def operands_of(op: Op, device: str, *, batch_size: int | None = None, seed: int = 0) -> Operands | BlockOperands:
    """Random operands, channels_last."""
    shape = (batch_size or op.shape[0], *op.shape[1:])
    return FORMS[op.form].make(shape, DTYPES[op.dtype], device, seed=seed)


def function_of(op: Op) -> Function:
    """What runs a form's operands through its kernels."""
    return FORMS[op.form].run


def oracle_of(op: Op) -> Function:
    """The same in plain PyTorch."""
    return FORMS[op.form].oracle


def mapped(operands: Of, change: Callable[[Tensor], Tensor]) -> Of:
    """The same operands with every tensor changed, as leaves of their own."""
    made: Of = _mapped(operands, change)
    return made


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401 - operands, and what they consist of
    if isinstance(value, Tensor):
        return change(value.detach()).requires_grad_(value.requires_grad)
    if isinstance(value, tuple):
        made = [_mapped(of, change) for of in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    return value


def directions(op: Op) -> tuple[Direction, ...]:
    """What there is to be called: a block in evaluation mode has no backward pass, and runs without gradients."""
    both: tuple[Direction, ...] = get_args(Direction)
    return both if op.mode == "train" or isinstance(FORMS[op.form], Kernel) else ("forward",)


def launches(op: Op, architecture: str | None) -> dict[Direction, tuple[Launched, ...]]:
    """The launches of the forward and of the backward call, on an architecture or (None) on this machine."""
    operands, run = operands_of(op, "meta"), function_of(op)
    found: dict[Direction, tuple[Launched, ...]] = {}
    with recorded(architecture) as forward:
        y = run(operands, op.mode == "train")
    found["forward"] = _named(forward, op.form)
    if "backward" in directions(op):
        with recorded(architecture) as backward:
            torch.autograd.grad(y, operands.differentiable(), torch.empty_like(y))
        found["backward"] = _named(backward, op.form)
    return found


def _named(calls: list[Call], form: str) -> tuple[Launched, ...]:
    return tuple(Launched(kind=_kind(call.kernel.__name__, form), call=call) for call in calls)


def _kind(kernel: str, form: str) -> str:
    kind = _KINDS.get(kernel)
    if kind is None:
        return kernel.removeprefix("_")
    return next((name for name in get_args(Pass) if name == kind + _SUFFIXES.get(form, "")), kind)


def middle_convolution(op: Op, direction: Direction) -> Budget:
    """What is no launch of a form's own: the middle convolution of a block is cuDNN's."""
    operands = operands_of(op, "meta")
    if not isinstance(operands, BlockOperands):
        return Budget(read=0, written=0)
    filters, geometry = operands.filters[CONV2].to(operands.x.dtype), operands.geometry
    n, _, height, width = op.shape
    y = filters.new_empty((n, filters.shape[1] * geometry.groups, height, width))
    out = F.conv2d(y, filters, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    flops = 2 * out.numel() * filters[0].numel()
    if direction == "forward":
        return Budget(read=y.nbytes + filters.nbytes, written=out.nbytes, flops=flops)
    read = 2 * out.nbytes + y.nbytes + filters.nbytes  # out's gradient twice: for that of y and for that of the filters
    return Budget(read=read, written=y.nbytes + filters.nbytes, flops=2 * flops)


def floor_bytes(op: Op, direction: Direction) -> int | None:
    """The least that an op moves where no cache holds its tensors; None for a block, which has no such simple least.

    A sum over all of a tensor has to be known before the pass that uses it begins: in training every tensor that is
    normalised is read twice, and in backward the gradient of the result too. Every result is written once. What a
    kernel chooses to keep (masks, places of maxima, partial sums) and what has a value a channel is not counted.
    """
    row = FORMS[op.form]
    if isinstance(row, BlockForm):
        return None
    x = operands_of(op, "meta").x
    passes, inputs, normalised = (2 if op.mode == "train" else 1), 1 + row.second, 1 + row.second_norm
    if direction == "forward":
        return ((passes - 1) * normalised + inputs) * x.nbytes + _result_bytes(op)
    return (passes * normalised + inputs) * x.nbytes + passes * _result_bytes(op)


def _result_bytes(op: Op) -> int:
    return oracle_of(op)(operands_of(op, "meta"), op.mode == "train").nbytes
