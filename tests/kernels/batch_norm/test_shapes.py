"""Shapes, strides and values that no network's author thinks of: fused BatchNorm does there what eager does."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.kernel import Kernel, Norm, Operands, Shape
from kernels.table import KERNELS_BY_NAME
from tests.support.bn_cases import (
    DEVICE,
    STRIDES,
    kinds,
    map_images,
    map_norms,
    mapped,
    operands_of,
    random_like,
    results,
    violations,
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of NaN and infinity in the interpreter
]

stem = pytest.mark.parametrize("kernel", [KERNELS_BY_NAME["stem"]], ids=["stem"])
trainings = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
layouts = pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "NCHW"])

SHAPES: tuple[Shape, ...] = (
    (64, 1, 1, 1),
    (2, 1, 7, 7),
    (33, 3, 1, 7),
    (1, 63, 7, 7),
    (16, 9, 1, 1),
    (1, 8, 4, 4),
    (5, 17, 3, 5),
)
WIDE: Shape = (16, 2048, 1, 1)
WINDOWS: tuple[Shape, ...] = (  # of the stem: one row or column, odd and even, as small as the window or smaller
    (16, 3, 1, 1),
    (4, 3, 1, 7),
    (4, 3, 7, 1),
    (8, 3, 2, 3),
    (8, 3, 3, 2),
    (4, 3, 2, 2),
    (2, 3, 5, 5),
    (2, 3, 6, 7),
)


@pytest.mark.parametrize(
    ("channels_last", "training"),
    [(True, True), *(pytest.param(False, training, marks=pytest.mark.exhaustive) for training in (True, False))],
    ids=["channels_last, training", "NCHW, training", "NCHW, evaluation"],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@kinds
def test_odd_shapes(kernel: Kernel, shape: Shape, channels_last: bool, training: bool) -> None:
    assert violations(kernel, operands_of(kernel, shape, channels_last=channels_last), training) == []


@pytest.mark.exhaustive
@trainings
@kinds
def test_two_thousand_channels(kernel: Kernel, training: bool) -> None:
    assert violations(kernel, operands_of(kernel, WIDE), training) == []


@layouts
@pytest.mark.parametrize("shape", WINDOWS, ids=str)
@stem
def test_windows_over_the_edge(kernel: Kernel, shape: Shape, channels_last: bool) -> None:
    assert violations(kernel, operands_of(kernel, shape, channels_last=channels_last), True) == []


@pytest.mark.parametrize("strides", STRIDES)
@kinds
def test_inputs_of_any_strides(kernel: Kernel, strides: str) -> None:
    operands = map_images(operands_of(kernel, (4, 6, 5, 7)), STRIDES[strides])
    assert not operands.x.is_contiguous()
    assert violations(kernel, operands, True) == []


@pytest.mark.parametrize("strides", STRIDES)
@kinds
def test_gradients_of_any_strides(kernel: Kernel, strides: str) -> None:
    operands = operands_of(kernel, (4, 6, 5, 7))
    dy = STRIDES[strides](random_like(kernel.oracle(operands, True)))
    assert violations(kernel, operands, True, dy=dy) == []


@kinds
def test_x_and_z_in_different_layouts(kernel: Kernel) -> None:
    operands = operands_of(kernel, (4, 6, 5, 7), channels_last=True)
    if operands.z is None:
        pytest.skip("takes no z")
    z = operands.z.detach().contiguous().requires_grad_()
    assert violations(kernel, operands._replace(z=z), True) == []


@pytest.mark.parametrize("strides", ["scalar", "channel", "pixel"])
def test_a_shortcut_is_broadcast(strides: str) -> None:
    """z smaller than x, as eager allows; its gradient is summed."""
    kernel = KERNELS_BY_NAME["bn+residual+relu"]
    operands = operands_of(kernel, (4, 6, 5, 7))
    assert operands.z is not None
    whole = operands.z.detach()
    z = {"scalar": whole[:1, :1, :1, :1], "channel": whole[:1, :, :1, :1], "pixel": whole[:, :1]}[strides]
    assert violations(kernel, operands._replace(z=z.clone().requires_grad_()), True) == []


@trainings
@kinds
def test_parameters_with_gaps(kernel: Kernel, training: bool) -> None:
    """Every other value of a longer tensor, and one value for all channels: as without gaps, to the bit.

    Eager cannot judge: on a CPU in channels_last its gradients in evaluation overlook the gaps (torch 2.11 and 2.14).
    """

    def gaps(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(2)[::2] if tensor.dim() == 1 else tensor

    def one_for_all(norm: Norm) -> Norm:
        assert norm.bias is not None
        return norm._replace(bias=norm.bias.detach()[:1].expand_as(norm.bias).requires_grad_())

    operands = map_norms(mapped(operands_of(kernel, (4, 6, 5, 7)), gaps), one_for_all)
    assert operands.norm.weight is not None
    assert not operands.norm.weight.is_contiguous()
    wanted = results(kernel.run, mapped(operands, Tensor.contiguous), training)
    assert all(torch.equal(out, wanted[name]) for name, out in results(kernel.run, operands, training).items())


def outcome(function: Callable[[], dict[str, Tensor]]) -> object:
    """Shapes of what comes out, or the error."""
    try:
        return {name: (tuple(out.shape), out.dtype) for name, out in function().items()}
    except (RuntimeError, IndexError, ValueError) as found:
        return type(found), str(found)


@trainings
@pytest.mark.parametrize("shape", [(0, 6, 5, 5), (2, 6, 0, 5), (2, 6, 5, 0), (2, 0, 5, 5)], ids=str)
@kinds
def test_empty_tensors(kernel: Kernel, shape: Shape, training: bool) -> None:
    """What eager makes of them: an empty result with gradients, or an error."""
    operands = operands_of(kernel, shape)
    wanted = outcome(lambda: results(kernel.oracle, operands, training))
    assert outcome(lambda: results(kernel.run, operands, training)) == wanted


BAD: dict[str, float] = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@trainings
@pytest.mark.parametrize("bad", BAD)
@kinds
def test_nan_and_infinity_reach_what_they_reach_in_eager(kernel: Kernel, bad: str, training: bool) -> None:
    """Of x, of z, and of the gradient: in one pixel each."""
    for victim in ("x", "z", "dy"):
        operands = operands_of(kernel, (2, 5, 6, 7))
        dy = random_like(kernel.oracle(operands, training))
        victims = {"x": operands.x, "z": operands.z, "dy": dy}
        struck = victims[victim]
        if struck is None:
            continue
        with torch.no_grad():
            struck[1, 2, 2, 3] = BAD[bad]
        wanted, found = (results(run, operands, training, dy) for run in (kernel.oracle, kernel.run))
        for name, out in found.items():
            assert torch.equal(out.isnan(), wanted[name].isnan()), f"{victim}: {name}"
            assert torch.equal(out.isposinf(), wanted[name].isposinf()), f"{victim}: {name}"
            assert torch.equal(out.isneginf(), wanted[name].isneginf()), f"{victim}: {name}"


def identity(x: Tensor, z: Tensor | None = None) -> Operands:
    """A BatchNorm in evaluation that returns x itself, to the bit."""
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    eps = 2.0**-10
    one, zero = (torch.full(x.shape[1:2], value, device=DEVICE, dtype=exact) for value in (1.0, 0.0))
    norm = Norm(one.clone().requires_grad_(), zero.clone().requires_grad_(), zero, one - eps, eps)
    return Operands(x.requires_grad_(), norm, None if z is None else z.requires_grad_(), None)


def small_integers(shape: Shape, low: int, high: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(low, high, shape, generator=generator).float().to(DEVICE)


@layouts
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 7, 9), (1, 8, 1, 5), (1, 1, 2, 2)], ids=str)
@stem
def test_of_equal_values_the_pool_takes_eagers(kernel: Kernel, shape: Shape, channels_last: bool) -> None:
    """Values 0, 1 and 2 and below zero: ties in every window, of what lives and of what the ReLU has killed."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    operands = identity(small_integers(shape, -2, 3).contiguous(memory_format=layout))
    dy = small_integers(tuple(kernel.oracle(operands, False).shape), 1, 100)  # type: ignore[arg-type]
    wanted, found = (results(run, operands, False, dy) for run in (kernel.oracle, kernel.run))
    assert all(torch.equal(out, wanted[name]) for name, out in found.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "kernel", [KERNELS_BY_NAME["bn+relu"], KERNELS_BY_NAME["bn+residual+relu"]], ids=lambda kernel: kernel.name
)
def test_relu_passes_nothing_at_zero(kernel: Kernel, dtype: torch.dtype) -> None:
    """x of -1, 0 and 1, and z that takes many sums to zero exactly."""
    x = small_integers((2, 9, 5, 5), -1, 2).to(dtype)
    operands = identity(x, x.flip(0) if kernel.second else None)
    wanted, found = (results(run, operands, False) for run in (kernel.oracle, kernel.run))
    assert torch.equal(found["y"], wanted["y"])
    assert (found["y"] == 0).any()
    assert torch.equal(found["dx"] != 0, found["y"] > 0)
    assert torch.equal(found["dx"], wanted["dx"])
