"""Every form of fused BatchNorm against itself in fp64, beside eager at the same precision."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.batch_norm import act
from kernels.batch_norm.statistics import MERGED_RUNS
from kernels.kernel import Kernel, Norm, Operands, Shape
from kernels.launch.layout import Matrix
from kernels.launch.passes import launch
from kernels.launch.runtime import INTERPRETED
from kernels.table import KERNELS, KERNELS_BY_NAME
from tests.support.bn_cases import (
    DEVICE,
    MANY_RUNS,
    TOLERANCES,
    error,
    kinds,
    map_norms,
    mapped,
    named,
    operands_of,
    results,
    statistics_of,
    violations,
)
from tests.support.exhaustive import exhaustive

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (2, 11, 7, 10)
AFFINES: dict[str, Callable[[Norm], Norm]] = {
    "no weight, no bias": lambda norm: norm._replace(weight=None, bias=None),
    "no bias": lambda norm: norm._replace(bias=None),
    "no weight": lambda norm: norm._replace(weight=None),
}
WITHOUT_RELU = {
    name: Kernel(name=name, run=partial(act._run, relu=False), oracle=partial(act._oracle, relu=False), **second)
    for name, second in {
        "bn+residual": {"second": True},
        "dual without relu": {"second": True, "second_norm": True},
    }.items()
}

forms = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
trainings = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
layouts = pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "NCHW"])
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, *exhaustive(torch.float16, torch.float64)], ids=str
)


@trainings
@layouts
@dtypes
@forms
def test_parity(kernel: Kernel, dtype: torch.dtype, channels_last: bool, training: bool) -> None:
    assert violations(kernel, operands_of(kernel, SHAPE, dtype, channels_last=channels_last), training) == []


@trainings
@forms
def test_parity_of_images_in_multiples_of_16_pixels(kernel: Kernel, training: bool) -> None:
    """NCHW has a layout of its own for them."""
    operands = operands_of(kernel, (2, 19, 4, 8), channels_last=False)
    assert Matrix.of(operands.x).layout == "NCHW, 16"
    assert violations(kernel, operands, training) == []


@pytest.mark.parametrize(
    "kernel",
    [pytest.param(kernel, marks=() if kernel.name == "bn+relu" else pytest.mark.exhaustive) for kernel in KERNELS],
    ids=lambda kernel: kernel.name,
)
def test_parity_over_many_runs(kernel: Kernel, many_runs: Shape) -> None:
    operands = operands_of(kernel, many_runs)
    plan = launch("statistics", Matrix.of(operands.x))
    rows = many_runs[0] * many_runs[2] * many_runs[3]
    assert plan.runs > MERGED_RUNS.value
    assert plan.rows_per_run > plan.block_rows or not INTERPRETED
    assert rows % plan.block_rows
    assert violations(kernel, operands, True) == []


@layouts
@forms
def test_parity_over_blocks_of_channels(kernel: Kernel, channels_last: bool, narrow_blocks: None) -> None:  # noqa: ARG001
    operands = operands_of(kernel, (2, 21, 4, 3), channels_last=channels_last)
    assert launch("statistics", Matrix.of(operands.x)).channel_blocks == 3
    assert violations(kernel, operands, True) == []


@trainings
@pytest.mark.parametrize("affine", AFFINES)
@kinds
def test_parity_without_parameters(kernel: Kernel, affine: str, training: bool) -> None:
    operands = map_norms(operands_of(kernel, SHAPE), AFFINES[affine])
    assert violations(kernel, operands, training) == []


@trainings
@pytest.mark.parametrize("dtype", [torch.bfloat16, *exhaustive(torch.float16)], ids=str)
@kinds
def test_parity_with_parameters_of_low_precision(kernel: Kernel, dtype: torch.dtype, training: bool) -> None:
    """What model.half() makes: parameters and running statistics in the precision of x."""
    operands = mapped(operands_of(kernel, SHAPE, dtype), lambda tensor: tensor.to(dtype))
    assert violations(kernel, operands, training) == []


@trainings
@pytest.mark.parametrize("name", WITHOUT_RELU)
def test_parity_of_a_sum_without_relu(name: str, training: bool) -> None:
    kernel = WITHOUT_RELU[name]
    assert violations(kernel, operands_of(kernel, SHAPE), training) == []


@kinds
def test_only_what_is_asked_for_gets_a_gradient(kernel: Kernel) -> None:
    """One after the other alone, as for frozen parameters or an image that is no variable."""
    all_of_them = operands_of(kernel, SHAPE)
    complete = results(kernel.run, all_of_them, True)
    for wanted, tensor in named(all_of_them).items():
        alone = mapped(all_of_them, Tensor.clone)
        for name, other in named(alone).items():
            other.requires_grad_(name == wanted)
        found = results(kernel.run, alone, True)
        assert found.keys() == {"y", f"d{wanted}"}
        assert torch.equal(found[f"d{wanted}"], complete[f"d{wanted}"])
        assert found[f"d{wanted}"].dtype == tensor.dtype


@trainings
@pytest.mark.parametrize("z_dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_shortcut_of_another_precision_is_converted(z_dtype: torch.dtype, training: bool) -> None:
    kernel = KERNELS_BY_NAME["bn+residual+relu"]
    same = operands_of(kernel, SHAPE, torch.bfloat16)
    assert same.z is not None
    other = same._replace(z=same.z.detach().to(z_dtype).requires_grad_())
    wanted, found = results(kernel.run, same, training), results(kernel.run, other, training)
    assert all(torch.equal(out, wanted[name]) for name, out in found.items())
    assert found["dz"].dtype == z_dtype


@layouts
@dtypes
@kinds
def test_statistics_of_a_batch(kernel: Kernel, dtype: torch.dtype, channels_last: bool) -> None:
    operands = operands_of(kernel, SHAPE, dtype, channels_last=channels_last)
    images = [operands.x] if operands.z_norm is None or operands.z is None else [operands.x, operands.z]
    moments = [torch.var_mean(image.detach().double(), (0, 2, 3), correction=0) for image in images]
    ref = torch.stack([moment for var, mean in moments for moment in (mean, var)])
    statistics = statistics_of(kernel, operands, True)
    assert statistics.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not statistics.requires_grad
    for found, wanted in zip(statistics, ref, strict=True):
        assert error(found, wanted) < TOLERANCES[statistics.dtype].floor


@forms
def test_statistics_in_evaluation_are_the_running_ones(kernel: Kernel) -> None:
    operands = operands_of(kernel, SHAPE)
    norms = [operands.norm] if operands.z_norm is None else [operands.norm, operands.z_norm]
    wanted = [moment for norm in norms for moment in (norm.running_mean, norm.running_var) if moment is not None]
    assert torch.equal(statistics_of(kernel, operands, False), torch.stack(wanted))


@trainings
@kinds
def test_operands_stay_as_they_are(kernel: Kernel, training: bool) -> None:
    """In training too: `update_running_statistics` alone changes the running statistics."""
    operands = operands_of(kernel, SHAPE)
    before = mapped(operands, Tensor.clone)
    results(kernel.run, operands, training)

    def tensors(of: Operands) -> list[Tensor]:
        norms = [of.norm] if of.z_norm is None else [of.norm, of.z_norm]
        found = [of.x, of.z, *(tensor for norm in norms for tensor in norm[:-1])]
        return [tensor for tensor in found if tensor is not None]

    assert all(torch.equal(now, then) for now, then in zip(tensors(operands), tensors(before), strict=True))


@layouts
@kinds
def test_two_runs_are_equal_bit_for_bit(
    kernel: Kernel,
    channels_last: bool,
) -> None:
    shape = MANY_RUNS if DEVICE == "cuda" else SHAPE
    first, second = (
        results(kernel.run, operands_of(kernel, shape, channels_last=channels_last), True) for _ in range(2)
    )
    assert all(torch.equal(out, second[name]) for name, out in first.items())
