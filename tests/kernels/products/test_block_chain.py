"""The end of a block and the next block's first convolution in one kernel, against fp64 and against two kernels."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from kernels.bottleneck.folded import Constants, block_chained, block_product, line_of
from kernels.launch import runtime
from kernels.launch.runtime import INTERPRETED, recorded
from kernels.products import plans, tiles
from kernels.products.block_chain import MOST_CHANNELS, MOST_PROJECTED, block_chain, chainable
from kernels.products.block_end import Branch, block_end
from tests.support.gram_cases import DEVICE, dtypes

# Both results are accumulated in fp32 (fp64 for fp64) and rounded where they are stored.
ERRORS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
KINDS = ("shortcut", "projection", "downsampling", "neither")
CHANNELS = {"ragged": (20, 44, 12, 24), "whole tiles": (16, 48, 32, 16), "narrow": (3, 5, 1, 2)}  # of y, out, next, z

pytestmark = pytest.mark.usefixtures("one_thread")

kinds = pytest.mark.parametrize("kind", KINDS)


def random(*size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    values: Tensor = torch.randn(size, generator=torch.Generator().manual_seed(sum(size) + seed)).to(DEVICE, dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(size) == 4 else values


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of several tiles and many blocks of columns, the last of each partial, as large tensors have them."""
    tile = tiles.ProductTile(rows=16, columns=16, inner=16, num_warps=1, num_stages=1)
    monkeypatch.setattr(plans, "product_tile", lambda _: tile)
    interpreter = runtime.ARCHITECTURES["interpreter"]
    monkeypatch.setitem(runtime.ARCHITECTURES, "interpreter", replace(interpreter, multiprocessors=2))


class Case:
    """Operands of a chain, and its two results in fp64 behind each other, both from the operands as they are."""

    def __init__(self, kind: str, dtype: torch.dtype, channels: str = "ragged", *, with_line: bool = True) -> None:
        inner, outside, following, projected = CHANNELS[channels]
        stride = 2 if kind == "downsampling" else 1
        self.dtype = dtype
        self.x = random(2, inner, 5, 7, dtype=dtype)
        self.line = self.line_of(inner) if with_line else None
        self.of_x = self.constants(outside, inner)
        self.following = self.constants(following, outside, seed=1)
        self.shortcut: Tensor | None = None
        self.of_z: Constants | None = None
        if kind == "shortcut":
            self.shortcut = random(2, outside, 5, 7, dtype=dtype, seed=2)
        elif kind != "neither":
            self.shortcut = random(2, projected, 5 * stride - (stride > 1), 7 * stride, dtype=dtype, seed=2)
            self.of_z = self.constants(outside, projected, seed=3, stride=stride)

    def line_of(self, channels: int, seed: int = 0) -> Tensor:
        sums = torch.float64 if self.dtype == torch.float64 else torch.float32
        mean, scale, shift = random(3, channels, dtype=sums, seed=seed)
        return torch.stack((mean, 1 + scale / 4, shift / 2))

    def constants(self, columns: int, channels: int, *, seed: int = 0, stride: int = 1) -> Constants:
        filters = random(columns, channels, 1, 1, dtype=self.dtype, seed=seed).contiguous()
        return Constants(filters / channels**0.5, self.line_of(columns, seed), stride)

    def branches(self) -> tuple[Branch, Branch | None, Tensor | None]:
        """As kernels take it."""
        branch = Branch(self.x, 1, self.line, self.of_x.filters, self.of_x.line)
        if self.of_z is None:
            return branch, None, self.shortcut
        assert self.shortcut is not None
        return branch, Branch(self.shortcut, self.of_z.stride, None, self.of_z.filters, self.of_z.line), None

    def chained(self) -> tuple[Tensor, Tensor]:
        return block_chain(*self.branches(), self.following.filters, self.following.line)

    def wanted(self) -> Tensor:
        """The first result."""
        y = self.x.double() if self.line is None else F.relu(normalised(self.x, self.line).to(self.dtype)).double()
        out = convolved(y, self.of_x)
        if self.of_z is not None:
            assert self.shortcut is not None
            out += convolved(self.shortcut.double(), self.of_z)
        elif self.shortcut is not None:
            out += self.shortcut.double()
        return F.relu(out)


def normalised(y: Tensor, line: Tensor) -> Tensor:
    mean, scale, shift = (of.double()[:, None, None] for of in line)
    result: Tensor = (y.double() - mean) * scale + shift
    return result


def convolved(y: Tensor, of: Constants) -> Tensor:
    convolution: Tensor = F.conv2d(y, of.filters.double(), stride=of.stride)
    return normalised(convolution, of.line)


def error(found: Tensor, ref: Tensor) -> float:
    assert found.shape == ref.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    return float((found.double() - ref).norm() / ref.norm())


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("channels", CHANNELS)
@kinds
@dtypes
def test_both_results_are_right(dtype: torch.dtype, kind: str, channels: str) -> None:
    case = Case(kind, dtype, channels)
    out, following = case.chained()
    assert (out.dtype, following.dtype) == (dtype, dtype)
    assert error(out, case.wanted()) < ERRORS[dtype]
    assert error(following, F.relu(convolved(out.double(), case.following))) < ERRORS[dtype]
    assert error(following, F.relu(convolved(case.wanted(), case.following))) < 2 * ERRORS[dtype]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("with_line", [True, False], ids=["behind a BatchNorm", "as it is"])
@dtypes
def test_it_is_as_near_to_fp64_as_two_kernels(dtype: torch.dtype, with_line: bool) -> None:
    case = Case("downsampling", dtype, with_line=with_line)
    out, following = case.chained()
    alone, _ = block_end(*case.branches())
    then, _ = block_end(Branch(alone, 1, None, case.following.filters, case.following.line), None, None)
    ref = F.relu(convolved(case.wanted(), case.following))
    assert error(out, alone.double()) < ERRORS[dtype]
    assert error(following, then.double()) < ERRORS[dtype]
    assert error(following, ref) < 1.5 * error(then, ref) + 1e-15


@pytest.mark.skipif(not INTERPRETED, reason="on a device tiles differ, and the order of sums with them")
@kinds
def test_one_tile_gives_the_bits_of_two_kernels(kind: str) -> None:
    """What is multiplied is what was stored: without the rounding between the two, some bits would differ."""
    case = Case(kind, torch.bfloat16)
    out, following = case.chained()
    alone, _ = block_end(*case.branches())
    then, _ = block_end(Branch(alone, 1, None, case.following.filters, case.following.line), None, None)
    assert torch.equal(out, alone)
    assert torch.equal(following, then)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none_and_in_its_row(value: float) -> None:
    case = Case("shortcut", torch.float32)
    assert case.shortcut is not None
    case.shortcut[1, 3, 2, 2] = value
    out, following = case.chained()
    elsewhere = torch.ones(2, 5, 7, dtype=torch.bool)
    elsewhere[1, 2, 2] = False
    assert not out[1, 3, 2, 2].isfinite()
    assert not following[1, :, 2, 2].isfinite().all()
    for result in (out, following):
        assert result.permute(0, 2, 3, 1)[elsewhere.to(result.device)].isfinite().all()


@kinds
def test_the_ops_are_the_kernels(kind: str) -> None:
    case = Case(kind, torch.float32)
    out, following = case.chained()
    alone = block_product(case.x, case.of_x, case.line, case.shortcut, case.of_z)
    assert torch.equal(alone, block_end(*case.branches())[0])
    if case.shortcut is not None:
        results = block_chained(case.x, case.of_x, case.line, case.shortcut, case.of_z, case.following)
        assert torch.equal(results[0], out)
        assert torch.equal(results[1], following)
    without = block_product(case.x, case.of_x, case.line, case.shortcut, case.of_z, relu=False)
    assert without.min() < 0
    assert torch.equal(F.relu(without), alone)


@pytest.mark.parametrize("affine", [True, False])
def test_a_line_is_the_batch_norm_that_it_is_of(affine: bool) -> None:
    norm = torch.nn.BatchNorm2d(6, eps=0.1, affine=affine).double().eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    for tensor in (norm.running_mean, norm.running_var, *norm.parameters()):
        torch.nn.init.uniform_(tensor, 0.5, 1.5)
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    line = line_of(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    assert torch.allclose(normalised(x, line), norm(x), rtol=1e-14, atol=1e-14)


@kinds
def test_it_reads_and_writes_what_two_kernels_do_but_for_the_wide_tensor(kind: str) -> None:
    case = Case(kind, torch.bfloat16)
    with recorded("sm_90") as calls:
        out, _ = case.chained()
        alone, _ = block_end(*case.branches())
        block_end(Branch(alone, 1, None, case.following.filters, case.following.line), None, None)
    chain, *two = [call.budget for call in calls]
    assert chain is not None
    first, second = (budget for budget in two if budget is not None)
    assert chain.read == first.read + second.read - out.nbytes
    assert chain.written == first.written + second.written
    assert chain.flops == first.flops + second.flops
    assert calls[0].grid[0] == 1


def test_what_registers_hold_can_be_chained(monkeypatch: pytest.MonkeyPatch) -> None:
    most, wide = MOST_CHANNELS, 4 * MOST_CHANNELS
    for name, tensor_cores in (("sm_80", False), ("sm_90", False), ("sm_100", False), ("interpreter", True)):
        with recorded(name):
            assert chainable(torch.bfloat16, most, wide, most, MOST_PROJECTED)
            assert not chainable(torch.bfloat16, 2 * most, wide, most, 0)
            assert not chainable(torch.bfloat16, most, wide, 2 * most, 0)
            assert not chainable(torch.bfloat16, most, wide, most, 2 * MOST_PROJECTED)
            assert not chainable(torch.bfloat16, most, wide + 8, most, 0)
            assert chainable(torch.float32, most, wide, most, 0) == tensor_cores
            with monkeypatch.context() as patch:
                patch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
                assert chainable(torch.float32, most, wide, most, 0)
