"""Touches of memory and launches, counted: as the headers of act.py and pool.py state them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from kernels.kernel import Operands, make_operands
from kernels.launch.runtime import INTERPRETED, Call, recorded
from kernels.table import KERNELS, KERNELS_BY_NAME
from tests.support.bn_cases import named, operands_of, random_like

BIT, BYTE, QUARTER = 1 / 16, 1 / 2, 1 / 4  # of a bf16 element; and the stem's y has a quarter of x's elements


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """Touches: how often a tensor of x's size is read or written, in bf16."""

    form: str
    training: bool
    forward: float
    backward: float


PLACES = QUARTER * BYTE
STATED = (
    Stated(form="bn", training=True, forward=3, backward=5),
    Stated(form="bn", training=False, forward=2, backward=3),
    Stated(form="bn+relu", training=True, forward=3, backward=5),
    Stated(form="bn+relu", training=False, forward=2, backward=3),
    Stated(form="bn+residual+relu", training=True, forward=4 + BIT, backward=6 + BIT),
    Stated(form="bn+residual+relu", training=False, forward=3 + BIT, backward=4 + BIT),
    Stated(form="dual", training=True, forward=5 + BIT, backward=8 + 2 * BIT),
    Stated(form="dual", training=False, forward=3 + BIT, backward=5 + BIT),
    Stated(form="stem", training=True, forward=2 + QUARTER + PLACES, backward=3 + 2 * (QUARTER + PLACES)),
    Stated(form="stem", training=False, forward=1 + QUARTER + PLACES, backward=2 + QUARTER + PLACES),
)
SMALL_TENSORS = 0.02  # statistics, parameters and partial sums together, of a touch, where x is large

stated_rows = pytest.mark.parametrize("stated", STATED, ids=lambda row: f"{row.form}, {row.training}")
layouts = pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "NCHW"])


def test_every_form_is_stated() -> None:
    assert {(row.form, row.training) for row in STATED} == {
        (kernel.name, training) for kernel in KERNELS for training in (True, False)
    }


def touches(calls: list[Call], x: Tensor) -> float:
    """Bytes of all tensors among the arguments, in those of x."""
    tensors = [argument for call in calls for argument in call.arguments if isinstance(argument, Tensor)]
    return sum(tensor.nbytes for tensor in tensors) / x.nbytes


@layouts
@pytest.mark.parametrize("machine", ["sm_80", "sm_90", "sm_100"])
@stated_rows
def test_touches_and_launches(stated: Stated, machine: str, channels_last: bool) -> None:
    kernel = KERNELS_BY_NAME[stated.form]
    operands = make_operands(kernel, (256, 64, 112, 112), torch.bfloat16, "meta", channels_last=channels_last)
    with recorded(machine) as forward:
        y = kernel.run(operands, stated.training)
    with recorded(machine) as backward:
        torch.autograd.grad(y, list(named(operands).values()), torch.empty_like(y))
    launches = 2 if stated.training else 1
    assert (len(forward), len(backward)) == (launches, launches)
    assert stated.forward <= touches(forward, operands.x) < stated.forward + SMALL_TENSORS
    assert stated.backward <= touches(backward, operands.x) < stated.backward + SMALL_TENSORS


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every access that programs of the interpreter make."""
    found: list[int] = []

    def counting(access: Callable[..., Any], mask_at: int) -> Callable[..., Any]:
        def counted(self: Any, pointers: Any, *arguments: Any) -> Any:  # noqa: ANN401 - the interpreter's
            found.append(int(arguments[mask_at].data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8)
            return access(self, pointers, *arguments)

        return counted

    for name, mask_at in (("create_masked_load", 0), ("create_masked_store", 1)):
        monkeypatch.setattr(InterpreterBuilder, name, counting(getattr(InterpreterBuilder, name), mask_at))
    return found


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter's accesses can be counted, a device's cannot")
@layouts
@stated_rows
def test_bytes_that_are_moved(stated: Stated, channels_last: bool, moved: list[int]) -> None:
    """As above, by the accesses themselves: a kernel might read an argument twice."""
    if stated.form == "stem":
        pytest.skip("its windows overlap: what is read more than once comes out of caches")
    kernel = KERNELS_BY_NAME[stated.form]
    operands: Operands = operands_of(kernel, (8, 8, 48, 48), torch.bfloat16, channels_last=channels_last)
    y = kernel.run(operands, stated.training)
    forward = sum(moved)
    moved.clear()
    torch.autograd.grad(y, list(named(operands).values()), random_like(y))
    assert stated.forward <= forward / operands.x.nbytes < stated.forward + SMALL_TENSORS
    assert stated.backward <= sum(moved) / operands.x.nbytes < stated.backward + SMALL_TENSORS


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("form", ["bn+relu", "bn+residual+relu", "dual", "stem"])
def test_what_is_kept_for_backward(form: str, training: bool) -> None:
    """x, for dual z as well, one bit or a byte for four elements: no y, and nothing in another precision."""
    kernel = KERNELS_BY_NAME[form]
    operands = make_operands(kernel, (4, 64, 16, 16), torch.bfloat16, "meta")
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with recorded("sm_90"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kernel.run(operands, training)
    wanted = {"bn+relu": 1.0, "bn+residual+relu": 1 + BIT, "dual": 2 + BIT, "stem": 1 + PLACES}[form]
    assert sum(tensor.nbytes for tensor in kept if tensor.dim() == 4) / operands.x.nbytes == wanted
