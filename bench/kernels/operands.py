"""The operands of an op, what is launched for it, and the bytes that it cannot do without. Worker side."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from bench.kernels.types import Direction, Op
from kernels.bottleneck.forms import BlockForm, BlockOperands
from kernels.bottleneck.parts import CONV2
from kernels.kernel import Kernel, Operands
from kernels.launch.passes import Pass
from kernels.launch.runtime import Budget, Call, recorded
from kernels.table import FORMS
from resnet.precision import DTYPES

Function = Callable[[Any, bool], Tensor]  # of the operands of its form, and whether it trains
AnyOperands = TypeVar("AnyOperands", bound=Operands | BlockOperands)

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
        """FLOPs of products of matrices."""
        return 0 if self.call.budget is None else self.call.budget.flops


def operands_of(op: Op, device: str, *, batch_size: int | None = None, seed: int = 0) -> Operands | BlockOperands:
    """Random operands, channels_last."""
    shape = (batch_size or op.shape[0], *op.shape[1:])
    return FORMS[op.form].make(shape, DTYPES[op.dtype], device, seed=seed)


def function_of(op: Op) -> Function:
    """The function that runs a form's operands through its kernels."""
    return FORMS[op.form].run


def oracle_of(op: Op) -> Function:
    """The function that computes the same in plain PyTorch."""
    return FORMS[op.form].oracle


def mapped(operands: AnyOperands, change: Callable[[Tensor], Tensor]) -> AnyOperands:
    """The same operands with every tensor changed, as leaves of their own."""
    changed: AnyOperands = _mapped(operands, change)
    return changed


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401 - operands, and what they consist of
    if isinstance(value, Tensor):
        return change(value.detach()).requires_grad_(value.requires_grad)
    if isinstance(value, tuple):
        items = [_mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def directions(op: Op) -> tuple[Direction, ...]:
    """The calls that an op has: a block in evaluation mode has no backward pass, and runs without gradients."""
    both: tuple[Direction, ...] = get_args(Direction)
    return both if op.mode == "train" or isinstance(FORMS[op.form], Kernel) else ("forward",)


def launches(op: Op, architecture: str | None) -> dict[Direction, tuple[Launched, ...]]:
    """The launches of the forward and of the backward call, on an architecture or (None) on this machine."""
    operands, run = operands_of(op, "meta"), function_of(op)
    by_direction: dict[Direction, tuple[Launched, ...]] = {}
    with recorded(architecture) as forward:
        y = run(operands, op.mode == "train")
    by_direction["forward"] = _named(forward, op.form)
    if "backward" in directions(op):
        with recorded(architecture) as backward:
            torch.autograd.grad(y, operands.differentiable(), torch.empty_like(y))
        by_direction["backward"] = _named(backward, op.form)
    return by_direction


def _named(calls: list[Call], form: str) -> tuple[Launched, ...]:
    return tuple(Launched(kind=_kind(call.kernel.__name__, form), call=call) for call in calls)


def _kind(kernel: str, form: str) -> str:
    kind = _KINDS.get(kernel)
    if kind is None:
        return kernel.removeprefix("_")
    return next((name for name in get_args(Pass) if name == kind + _SUFFIXES.get(form, "")), kind)


def middle_convolution(op: Op, direction: Direction) -> Budget:
    """The bytes and FLOPs of a block's middle convolution, which is cuDNN's and no launch of a form's own."""
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
