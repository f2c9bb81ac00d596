"""Statistics of what real networks hand a BatchNorm, and the running statistics that come of them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kernels.batch_norm.statistics import update_running_statistics
from kernels.kernel import Kernel, Norm, Operands, Shape
from kernels.table import KERNELS_BY_NAME
from tests.support.bn_cases import (
    DEVICE,
    MANY_RUNS,
    TOLERANCES,
    error,
    kinds,
    operands_of,
    random_like,
    results,
    statistics_of,
)
from tests.support.exhaustive import exhaustive

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE: Shape = (4, 8, 9, 7)


def plain(x: Tensor) -> Operands:
    """x with a BatchNorm that only normalises."""
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, bias = (torch.full(x.shape[1:2], value, device=DEVICE, dtype=exact) for value in (1.0, 0.0))
    return Operands(x, Norm(weight, bias, None, None, 1e-5), None, None)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of a channel, in fp64."""
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    return mean, var


def naive_variance(x: Tensor) -> Tensor:
    """E[x^2] - E[x]^2 in fp32, with exact means."""
    mean, square = (power.double().mean((0, 2, 3)).float() for power in (x.float(), x.float().square()))
    return square - mean.square()


def far_from_zero(shape: Shape) -> Tensor:
    """|mean| is 1e4 times the standard deviation."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1e4
    return x.to(DEVICE).contiguous(memory_format=torch.channels_last)


def with_an_outlier(shape: Shape) -> Tensor:
    """The first row of the first run, of which the pivot is made, is far from all others."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[0, :, 0, 0] = 1e5
    return x.to(DEVICE).contiguous(memory_format=torch.channels_last)


def near_overflow(shape: Shape) -> Tensor:
    """fp16 up to 60000: the sum of two values is beyond its range, and so is every square."""
    x = 6e4 - 100 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return x.to(DEVICE, torch.float16).contiguous(memory_format=torch.channels_last)


def shifting(shape: Shape) -> Tensor:
    """The runs' own means lie far apart: the first image's is 0, the second's 1e3."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x += 1e3 * torch.arange(shape[0])[:, None, None, None]
    return x.to(DEVICE).contiguous(memory_format=torch.channels_last)


EPS = 2**-24  # the unit roundoff of fp32
# How far a variance may be off. A run's mean is rounded to fp32: where it is 1e4 standard deviations from zero, it is
# off by up to 1e4 units of rounding, against which it is merged with others.
HARD: dict[str, tuple[Callable[[Shape], Tensor], float]] = {
    "far from zero": (far_from_zero, 1e4 * EPS),
    "an outlier in the first row": (with_an_outlier, 32 * EPS),
    "fp16 near overflow": (near_overflow, 2e3 * EPS),
    "runs far apart": (shifting, 32 * EPS),
}
BEYOND_NAIVE = ("far from zero", "fp16 near overflow")


@pytest.mark.parametrize("form", ["bn", *exhaustive("stem")])
@pytest.mark.parametrize("name", HARD)
def test_hard_statistics(name: str, form: str, many_runs: Shape) -> None:
    make, tolerance = HARD[name]
    x = make(many_runs)
    mean, var = moments(x)
    found = statistics_of(KERNELS_BY_NAME[form], plain(x), True)
    assert ((found[0] - mean).abs() <= 4 * EPS * (mean.abs() + var.sqrt())).all()
    assert error(found[1], var) < tolerance


@pytest.mark.parametrize("name", BEYOND_NAIVE)
def test_the_naive_formula_would_fail_there(name: str) -> None:
    make, tolerance = HARD[name]
    x = make(MANY_RUNS)
    assert error(naive_variance(x), moments(x)[1]) > 100 * tolerance


@pytest.mark.parametrize("name", HARD)
def test_what_comes_of_hard_statistics(name: str) -> None:
    """y and the gradients: beside eager, which loses more where it multiplies before it subtracts."""
    make, _ = HARD[name]
    kernel = KERNELS_BY_NAME["bn"]
    operands = plain(make(SHAPE).requires_grad_())
    dy = random_like(operands.x)
    double = plain(operands.x.detach().double().requires_grad_())
    ref, eager, found = (
        results(run, of, True, dy)
        for run, of in ((kernel.oracle, double), (kernel.oracle, operands), (kernel.run, operands))
    )
    for result in ("y", "dx"):
        floor = TOLERANCES[found[result].dtype].floor
        assert error(found[result], ref[result]) <= max(1.25 * error(eager[result], ref[result]), floor)


@pytest.mark.parametrize("kernel", [KERNELS_BY_NAME["bn"]], ids=["bn"])
def test_the_difference_is_taken_first(kernel: Kernel) -> None:
    """x - mean is exact where both are large and near: y is then as good as for values around zero."""
    x = far_from_zero(SHAPE)
    mean, var = (torch.full((8,), value, device=DEVICE) for value in (1e4, 1.0))
    operands = plain(x)
    operands = operands._replace(norm=operands.norm._replace(running_mean=mean, running_var=var))
    y = kernel.run(operands, False)
    assert error(y, (x.double() - 1e4) / (1 + 1e-5) ** 0.5) < TOLERANCES[torch.float32].floor


@pytest.mark.parametrize("value", [0.0, 1.0, -3.1415927, 1e4, 1e-30])
@kinds
def test_a_constant_channel_has_no_variance(kernel: Kernel, value: float) -> None:
    """A channel of equal values beside others, as behind dead filters: y is the bias, gradients are finite."""
    operands = operands_of(kernel, SHAPE)
    with torch.no_grad():
        operands.x[:, 3] = value
        if operands.z is not None:
            operands.z[:, 3] = value
    assert all(out.isfinite().all() for out in results(kernel.run, operands, True).values())
    mean, var = statistics_of(kernel, operands, True)[:2, 3]
    assert mean == pytest.approx(value, rel=2**-23)
    assert var <= (2 * EPS * abs(value)) ** 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_constant_channel_gives_its_bias(dtype: torch.dtype) -> None:
    operands = plain(torch.full(SHAPE, 0.7, device=DEVICE, dtype=dtype))
    operands = operands._replace(norm=operands.norm._replace(bias=torch.full((8,), 0.25, device=DEVICE)))
    y = KERNELS_BY_NAME["bn"].run(operands, True)
    assert torch.allclose(y.float(), torch.tensor(0.25, device=DEVICE), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("form", ["bn", "stem"])
def test_a_channel_with_a_bad_value_has_no_variance_at_all(form: str, bad: float) -> None:
    """NaN, so that the running statistics show it, as eager's; the other channels' are theirs."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    good = statistics_of(KERNELS_BY_NAME[form], plain(x), True)
    x[1, 3, 2, 2] = bad
    mean, var = statistics_of(KERNELS_BY_NAME[form], plain(x), True)
    assert not mean[3].isfinite()
    assert var[3].isnan()
    others = torch.arange(SHAPE[1], device=DEVICE) != 3
    assert torch.equal(torch.stack([mean, var])[:, others], good[:, others])


def test_a_channel_that_varies_in_one_unit_alone() -> None:
    """Nearly constant: 1 and the fp32 above it, whose variance is 2^-48, far below eps and rounding of a square."""
    x = torch.ones(SHAPE)
    x[::2] += 2**-23
    _, var = statistics_of(KERNELS_BY_NAME["bn"], plain(x.to(DEVICE)), True)
    assert torch.allclose(var, torch.tensor(2**-48, device=DEVICE), rtol=2**-20, atol=0)


STEPS = 4  # each rounds once
MOMENTA = (0.1, 0.0, 1.0, 0.37, None)


def running(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def tracked(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("channels", [1, 5, 2048])
def test_running_statistics_are_those_of_batch_norm(channels: int, momentum: float | None, dtype: torch.dtype) -> None:
    """Several steps from the same start, batches of few values so that biased and unbiased differ."""
    eager = nn.BatchNorm2d(channels, momentum=momentum).to(DEVICE, dtype)
    exact = nn.BatchNorm2d(channels, momentum=momentum).to(DEVICE, torch.float64)
    mine = nn.BatchNorm2d(channels).to(DEVICE, dtype)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        x = (torch.randn(2, channels, 2, 1, generator=generator) * 3 + 1).to(DEVICE, dtype)
        eager(x)
        exact(x.double())
        statistics = torch.stack(moments(x)).to(torch.float64 if dtype == torch.float64 else torch.float32)
        update_running_statistics(*running(mine), tracked(mine), statistics, momentum, 4)
    for found, theirs, ref in zip(running(mine), running(eager), running(exact), strict=True):
        assert error(found, ref) <= max(1.25 * error(theirs, ref), STEPS * TOLERANCES[dtype].floor)
    assert torch.equal(tracked(mine), tracked(eager))
    if momentum == 0:
        assert torch.equal(torch.stack(running(mine)), torch.stack(running(nn.BatchNorm2d(channels).to(mine.weight))))


def test_running_statistics_with_gaps_are_refused() -> None:
    """A kernel would write into the gaps."""
    mean, var = torch.zeros(12, device=DEVICE), torch.ones(12, device=DEVICE)
    batches, statistics = torch.tensor(0, device=DEVICE), torch.ones(2, 6, device=DEVICE)
    for arguments in ((mean[::2], var[:6]), (mean[:6], var[::2])):
        with pytest.raises(ValueError, match="have to be contiguous to be updated in place; call contiguous"):
            update_running_statistics(*arguments, batches, statistics, 0.1, 100)
    assert torch.equal(mean, torch.zeros_like(mean))
    assert batches == 0
