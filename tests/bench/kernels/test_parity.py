"""The check of the kernel bench: every form passes it, what is a little wrong does not, and how an error is taken."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from bench.kernels.parity import check, error
from bench.kernels.types import KernelMode, Op
from bench.types import Device
from kernels.bottleneck.forms import BLOCKS, BlockForm, BlockOperands
from kernels.kernel import Operands
from kernels.table import FORMS, KERNELS, KERNELS_BY_NAME

DEVICE: Device = "cuda" if torch.cuda.is_available() else "cpu"
BOTTLENECKS = [block.name for block in BLOCKS]
SMALL = Op(form="bn+relu", shape=(2, 16, 8, 8), dtype="fp32", mode="train")
TENSORS = {"dual": 7, "bn+residual+relu": 5, "bottleneck": 11, **dict.fromkeys(BOTTLENECKS[1:], 14)}


@pytest.mark.parametrize("mode", get_args(KernelMode))
@pytest.mark.parametrize("form", FORMS)
def test_every_form_passes(form: str, mode: KernelMode) -> None:
    verdict = check(replace(SMALL, form=form, mode=mode), DEVICE)
    assert verdict.passed
    expected = 1 if (mode, form in BOTTLENECKS) == ("eval", True) else TENSORS.get(form, 4)
    assert verdict.tensors == expected, "y and every gradient that there is"


def a_little_too_large(operands: Operands, training: bool) -> Tensor:
    return 1.00002 * KERNELS_BY_NAME["bn"].oracle(operands, training)


def most_of_the_residual_gradient(operands: Operands, training: bool) -> Tensor:
    """The right result."""
    assert operands.z is not None
    z = 0.9 * operands.z + 0.1 * operands.z.detach()
    return KERNELS_BY_NAME["bn+residual+relu"].oracle(operands._replace(z=z), training)


def statistics_as_constants(operands: Operands, training: bool) -> Tensor:
    """The right result, and no gradient through mean and variance."""
    assert training
    x = operands.x.detach()
    norm = operands.norm._replace(running_mean=x.mean((0, 2, 3)), running_var=x.var((0, 2, 3), unbiased=False))
    return KERNELS_BY_NAME["bn"].oracle(operands._replace(norm=norm), False)


@pytest.mark.parametrize(
    ("form", "wrong", "tensors"),
    [
        ("bn", a_little_too_large, {"y", "dx", "dweight", "dbias"}),
        ("bn+residual+relu", most_of_the_residual_gradient, {"dz"}),
        ("bn", statistics_as_constants, {"dx"}),
    ],
)
def test_a_wrong_op_fails(
    monkeypatch: pytest.MonkeyPatch, form: str, wrong: Callable[[Operands, bool], Tensor], tensors: set[str]
) -> None:
    monkeypatch.setitem(FORMS, form, replace(KERNELS_BY_NAME[form], run=wrong))
    verdict = check(replace(SMALL, form=form), DEVICE)
    assert not verdict.passed
    assert verdict.worst.tensor in tensors


class MostOfAGradient(BlockForm):
    """The right result, and nine tenths of the gradient of the last BatchNorm's weight."""

    def run(self, operands: BlockOperands, training: bool) -> Tensor:
        *others, last = operands.norms
        assert last.weight is not None
        weight = 0.9 * last.weight + 0.1 * last.weight.detach()
        return self.oracle(operands._replace(norms=(*others, last._replace(weight=weight))), training)


def test_a_wrong_block_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = MostOfAGradient(name="bottleneck", inside=1 / 4, outside=1, projected=False)
    monkeypatch.setitem(FORMS, "bottleneck", wrong)
    verdict = check(replace(SMALL, form="bottleneck"), DEVICE)
    assert not verdict.passed
    assert verdict.worst.tensor == "dweight3"


def test_gradients_are_checked_where_they_are_not_next_to_nothing() -> None:
    """A gradient like x has no component that passes the BatchNorm: its dx would be noise, eager's as well."""
    for form in (kernel.name for kernel in KERNELS):
        worst = check(replace(SMALL, form=form, dtype="bf16"), DEVICE).worst
        assert worst.eager_error < 0.1, worst


def test_error_sets_few_differences_aside_and_no_more() -> None:
    ref = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    few, many = ref.clone(), ref.clone()
    few[0, :3] += 100
    many[0, :30] += 100
    assert error(few, ref) == 0.0
    assert error(many, ref) > 1
    assert error(1.01 * ref, ref) == pytest.approx(0.01, rel=0.02)
    assert error(torch.zeros_like(ref), ref) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_error_of_what_is_not_finite_is_infinite(value: float) -> None:
    ref = torch.ones(64, dtype=torch.float64)
    out = ref.clone()
    out[7] = value
    assert error(out, ref) == float("inf")
    assert error(ref[:32], ref) == float("inf"), "or of another shape"


@pytest.mark.skipif(DEVICE == "cuda", reason="what a machine without a GPU does")
def test_the_interpreter_is_given_a_batch_that_it_can_do() -> None:
    verdict = check(replace(SMALL, shape=(256, 64, 56, 56)), "cpu")
    assert verdict.passed
    assert 2 <= verdict.batch_size < 8
