"""Backward finds the ReLU's mask again from x: it has to be that of y, to the bit, where rounding decides."""

import pytest
import torch
from torch import Tensor

from kernels.kernel import Kernel, Norm, Operands
from kernels.table import KERNELS_BY_NAME
from tests.support.bn_cases import DEVICE, map_norms, operands_of
from tests.support.exhaustive import exhaustive

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of overflow in the interpreter
]

RELUS = [KERNELS_BY_NAME[name] for name in ("bn+relu", "bn+residual+relu", "dual")]

dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, *exhaustive(torch.float16, torch.float32)], ids=str)
layouts = pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "NCHW"])


def around_zero(kernel: Kernel, dtype: torch.dtype, *, channels_last: bool) -> Operands:
    """Each channel takes a few neighbouring values, and the bias is what takes one of them to zero but for rounding."""
    operands = operands_of(kernel, (2, 67, 6, 5), dtype, channels_last=channels_last)
    middle = 1 + operands.x.detach()[:1, :, :1, :1].abs()
    steps = torch.randint(-2, 3, operands.x.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x = (middle * (1 + steps * torch.finfo(dtype).eps)).to(dtype)

    def cancelling(norm: Norm) -> Norm:
        mean, var, weight = norm.running_mean, norm.running_var, norm.weight
        assert mean is not None and var is not None and weight is not None and norm.eps is not None  # noqa: PT018
        value = (middle.flatten().float() - mean) * (weight.detach() / (var + norm.eps).sqrt())
        return norm._replace(bias=(-value).requires_grad_())

    z = None if operands.z is None else x.flip(0)
    if kernel.name == "bn+residual+relu" and z is not None:
        z = torch.where(steps % 2 == 0, 0.0, torch.finfo(dtype).smallest_normal * steps).to(dtype)
    operands = map_norms(operands._replace(x=x, z=z), cancelling)
    return operands._replace(x=x.requires_grad_(), z=None if z is None else z.requires_grad_())


def small(kernel: Kernel, dtype: torch.dtype, *, channels_last: bool) -> Operands:
    """Results around the smallest number of fp16, half of them rounded to zero; in bf16 and fp32 merely small."""

    def tiny(norm: Norm) -> Norm:
        assert norm.weight is not None
        return norm._replace(weight=torch.full_like(norm.weight, 2.0**-25).requires_grad_(), bias=None)

    operands = map_norms(operands_of(kernel, (2, 67, 6, 5), dtype, channels_last=channels_last), tiny)
    if operands.z_norm is None and operands.z is not None:
        operands = operands._replace(z=(operands.z.detach() * 2.0**-24).requires_grad_())
    return operands


MAKERS = {"around zero": around_zero, "small": small}


@layouts
@dtypes
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("kernel", RELUS, ids=lambda kernel: kernel.name)
def test_in_evaluation_gradient_passes_where_y_is_above_zero(
    kernel: Kernel, maker: str, dtype: torch.dtype, channels_last: bool
) -> None:
    """dx is then dy times a number that is not zero, large enough not to vanish in dx's precision."""
    operands = MAKERS[maker](kernel, dtype, channels_last=channels_last)
    y = kernel.run(operands, False)
    dy = torch.full_like(y, 2.0**12)
    (dx,) = torch.autograd.grad(y, operands.x, dy)
    assert 0.05 < (y > 0).float().mean() < 0.95
    assert torch.equal(dx != 0, y > 0)


@dtypes
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("kernel", RELUS, ids=lambda kernel: kernel.name)
def test_in_training_as_many_pass_as_are_above_zero(kernel: Kernel, maker: str, dtype: torch.dtype) -> None:
    """The gradient of the bias counts them, channel by channel."""
    operands = MAKERS[maker](kernel, dtype, channels_last=True)
    bias = torch.zeros(operands.x.shape[1], device=DEVICE, requires_grad=True)
    operands = operands._replace(norm=operands.norm._replace(bias=bias))
    y = kernel.run(operands, True)
    (dbias,) = torch.autograd.grad(y, bias, torch.ones_like(y))
    alive: Tensor = (y > 0).sum((0, 2, 3)).float()
    assert 0 < alive.sum() < y.numel()
    assert torch.equal(dbias, alive)
