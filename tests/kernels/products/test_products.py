"""Products by 1x1 filters: launches that cover every row once, results that are rounded once, masks bit for bit."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from triton import cdiv

from kernels.gram import covariance
from kernels.gram.covariance import gram_source
from kernels.gram.statistics import ROUNDINGS, result_statistics
from kernels.kernel import Norm
from kernels.launch.runtime import ARCHITECTURES, architecture, recorded
from kernels.products import plans
from kernels.products.block_end import Branch, block_end
from kernels.products.conv_statistics import conv_statistics
from kernels.products.filter_gradient import filter_gradient
from kernels.products.input_gradient import input_gradient
from kernels.products.plans import (
    LEAST_BLOCK,
    ProductLaunch,
    product_launch,
    product_of,
    product_tile,
    row_product_launch,
)
from kernels.products.tiles import ProductPass, ProductTile
from tests.support.gram_cases import DEVICE, EXACT, FP64, small_products  # noqa: F401 - a fixture
from tests.support.products import activated, line_of, mask_of, normalised, random, rows

N, K, HEIGHT, WIDTH = 3, 20, 7, 9
ODD = 28  # columns: no multiple of a tile, nor of the bits of a byte

PASSES: tuple[ProductPass, ...] = get_args(ProductPass)
SIZES = (1, 16, 20, 64, 256, 2048)  # of channels
ROWS = (1, 5, 16, 4097, 256 * 56 * 56)

CLOSE = 1e-11 if FP64 else 1e-4

dtypes = pytest.mark.parametrize("dtype", dict.fromkeys((torch.bfloat16, torch.float32, EXACT)), ids=str)
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


# Launches.


@pytest.mark.parametrize("machine", ARCHITECTURES)
@dtypes
def test_programs_cover_every_row_and_column_once_and_all_are_resident(machine: str, dtype: torch.dtype) -> None:
    with recorded(machine):
        for kind in PASSES:
            for columns in SIZES:
                for inner in SIZES:
                    tile = product_tile(product_of(kind, dtype, columns, inner))
                    for size in ROWS:
                        plan = product_launch(kind, size, columns, inner, dtype)
                        complete(plan, size, plan.block_rows)
                        assert plan.column_blocks == cdiv(columns, plan.block_columns)
                        assert plan.runs * plan.column_blocks <= resident(tile.programs, plan.column_blocks)
                        whole = product_launch(kind, size, columns, inner, dtype, whole_rows=True)
                        complete(whole, size, whole.block_rows)
                        assert whole.column_blocks == 1


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["row product", "gram"])
@dtypes
def test_splits_cover_every_row_once_and_all_are_resident(machine: str, kind: ProductPass, dtype: torch.dtype) -> None:
    with recorded(machine):
        for left in SIZES:
            for right in SIZES if kind == "row product" else (left,):
                tile = product_tile(product_of(kind, dtype, left, right))
                for size in ROWS:
                    plan = row_product_launch(kind, size, left, right, dtype)
                    complete(plan, size, plan.block_inner)
                    of_left, of_right = cdiv(left, plan.block_rows), cdiv(right, plan.block_columns)
                    assert plan.column_blocks == of_left * of_right
                    computed = plan.column_blocks if kind == "row product" else of_left * (of_left + 1) // 2
                    assert plan.runs * computed <= resident(tile.programs, computed)


def complete(plan: ProductLaunch, size: int, step: int) -> None:
    """Runs of whole steps, none of them empty, that reach the last row; sides that tensor cores and masks allow."""
    assert plan.rows_per_run % step == 0
    assert (plan.runs - 1) * plan.rows_per_run < size <= plan.runs * plan.rows_per_run
    for side in (plan.block_rows, plan.block_columns, plan.block_inner):
        assert side >= LEAST_BLOCK
        assert side & (side - 1) == 0, "no power of two"


def resident(programs: int, blocks: int) -> int:
    """Programs that the machine holds, or those of a single run where there are more blocks than that."""
    return max(architecture().multiprocessors * programs, blocks)


# Results.


def once(found: Tensor, wanted: Tensor) -> None:
    """Rounding happens where the result is stored and nowhere before: hardly more than of the exact result.

    One value in thousands lies so near to the middle of two neighbours that accumulating in fp32 changes its side.
    """
    assert found.shape == wanted.shape
    assert distance(found, wanted) <= 1.01 * distance(wanted.to(found.dtype), wanted)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm())


@halves
@pytest.mark.usefixtures("small_products")
def test_a_convolution_is_rounded_once(dtype: torch.dtype) -> None:
    x, filters = random(N, K, HEIGHT, WIDTH, dtype=dtype), random(ODD, K, 1, 1, dtype=dtype)
    once(conv_statistics(x, filters, 2)[0], F.conv2d(x.double(), filters.double(), stride=2))


@halves
@pytest.mark.parametrize("projected", [True, False], ids=["projected", "identity"])
@pytest.mark.usefixtures("small_products")
def test_the_end_of_a_block_is_rounded_once_where_eager_is_rounded_more_often(
    dtype: torch.dtype, projected: bool
) -> None:
    x, line = random(N, K, HEIGHT, WIDTH, dtype=dtype), line_of(K, dtype)
    filters, result_line = random(ODD, K, 1, 1, dtype=dtype), line_of(ODD, dtype)
    y = activated(x, line)
    shortcut, z = random(N, ODD, HEIGHT, WIDTH, dtype=dtype), None
    exact, eager = shortcut.double(), shortcut
    if projected:
        z = Branch(random(N, 12, HEIGHT, WIDTH, dtype=dtype), 1, None, random(ODD, 12, 1, 1, dtype=dtype), result_line)
        exact = normalised(F.conv2d(z.x.double(), z.filters.double()), z.result_line)
        eager = normalised(F.conv2d(z.x, z.filters).double(), z.result_line).to(dtype)
    out, _ = block_end(Branch(x, 1, line, filters, result_line), z, None if projected else shortcut)
    wanted = F.relu(normalised(F.conv2d(y.double(), filters.double()), result_line) + exact)
    once(out, wanted)
    rounded = F.relu(normalised(F.conv2d(y, filters).double(), result_line).to(dtype) + eager)
    assert distance(out, wanted) < distance(rounded, wanted)


@halves
@pytest.mark.usefixtures("small_products")
def test_the_gradient_of_a_blocks_input_is_rounded_once(dtype: torch.dtype) -> None:
    x, dy = random(N, ODD, HEIGHT, WIDTH, dtype=dtype), random(N, K, HEIGHT, WIDTH, dtype=dtype)
    filters, skip = random(K, ODD, 1, 1, dtype=dtype), random(N, ODD, HEIGHT, WIDTH, dtype=dtype, seed=1)
    kept = random(*skip.shape, seed=2) > 0
    wanted = F.conv_transpose2d(dy.double(), filters.double()) + skip.double() * kept
    once(input_gradient(dy, filters, x, 1, skip, mask_of(kept)), wanted)


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
@pytest.mark.usefixtures("small_products")
def test_in_inference_a_strided_convolution_ends_in_its_batch_norm(relu: bool) -> None:
    """What the first convolution of a block is, too."""
    x = random(N, K, HEIGHT, WIDTH, dtype=EXACT)
    filters, line = random(ODD, K, 1, 1, dtype=EXACT), line_of(ODD, EXACT)
    out, mask = block_end(Branch(x, 2, None, filters, line), None, None, relu=relu)
    wanted = normalised(F.conv2d(x, filters, stride=2), line)
    torch.testing.assert_close(out.double(), F.relu(wanted) if relu else wanted, rtol=CLOSE, atol=CLOSE)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert mask is None


# Statistics from Gram matrices.

# Some units of rounding of the sums; at 16 bits y less its centre is rounded once more, by up to 2^-9 of values of one.
SUMMED = {torch.bfloat16: 2.0**-9, torch.float32: 2.0**-20, torch.float64: 2.0**-49}


def without_norm(columns: int) -> Norm:
    ones = torch.ones(columns, device=DEVICE)
    return Norm(ones, torch.zeros_like(ones), None, None, 1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@dtypes
def test_blocks_of_a_covariance_lie_within_several_blocks_of_the_gram_matrix(
    dtype: torch.dtype, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the sample that the centre is the mean of is few of all rows, too."""
    tile = ProductTile(rows=32, columns=32, inner=16, num_warps=1, num_stages=1)
    monkeypatch.setattr(plans, "product_tile", lambda _: tile)
    monkeypatch.setattr(covariance, "INTERPRETED_MERGED", 16)
    monkeypatch.setattr(covariance, "SAMPLED_ROWS", 8)
    x = random(N, 100, HEIGHT, WIDTH, dtype=dtype)
    source, made, _ = gram_source(x, stride, None, None, 0)
    y = rows(x, stride)
    assert source.offset.abs().max() > 0.1
    torch.testing.assert_close((source.centre + source.offset).double(), y.mean(0), rtol=0, atol=SUMMED[dtype])
    wanted = torch.cov(y.T, correction=0)
    assert distance(made, wanted) <= SUMMED[dtype] * float(wanted.norm())


def test_a_run_shorter_than_a_tile_has_statistics_around_its_own_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Around a smaller pivot, squares of 1000 would leave three digits of a variance of one."""
    tile = ProductTile(rows=256, columns=32, inner=32, num_warps=1, num_stages=1)
    monkeypatch.setattr(plans, "product_tile", lambda _: tile)
    x = random(N, K, HEIGHT, WIDTH) + 1000.0
    x = x.contiguous(memory_format=torch.channels_last)
    out, partials, rows_per_run = conv_statistics(x, torch.eye(K, device=DEVICE)[:, :, None, None].contiguous(), 1)
    assert rows_per_run > len(rows(out)) == N * HEIGHT * WIDTH
    spread = (rows(out) - rows(out).mean(0)).square().sum(0)
    torch.testing.assert_close(partials[0, 1, 0].double(), spread, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("small_products")
def test_no_variance_is_smaller_than_rounding_can_tell() -> None:
    """A filter that takes the difference of two equal channels, beside one that takes their sum."""
    x = random(N, K, HEIGHT, WIDTH)
    x[:, 17] = x[:, 2]
    filters = torch.zeros(ODD, K, 1, 1, device=DEVICE)
    filters[:, 2], filters[:, 17] = 1.0, 1.0
    filters[3, 17] = -1.0
    source, covariance, _ = gram_source(x, 1, None, None, 0)
    _, var = result_statistics(source, covariance, filters, without_norm(ODD)).statistics.double()
    deviation = rows(x)[:, 2].std(correction=0)
    least = ROUNDINGS * torch.finfo(torch.float32).eps * (2 * deviation) ** 2
    torch.testing.assert_close(var[3], least, rtol=1e-4, atol=0)
    torch.testing.assert_close(var[4], 4 * deviation**2, rtol=1e-5, atol=0)


# Masks.


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.usefixtures("small_products")
def test_a_mask_has_a_bit_for_each_value_that_the_relu_let_pass() -> None:
    """As torch's: zero does not pass, NaN does, and the last byte is zero behind the last channel."""
    x, filters, line = random(N, K, HEIGHT, WIDTH), random(ODD, K, 1, 1), line_of(ODD, torch.float32)
    shortcut = random(N, ODD, HEIGHT, WIDTH)
    whole, _ = block_end(Branch(x, 1, None, filters, line), None, None, relu=False)
    shortcut[:, 3] = -whole[:, 3]  # zeros
    shortcut[1, 4, 2, 2] = float("nan")
    before, _ = block_end(Branch(x, 1, None, filters, line), None, shortcut, relu=False)
    out, mask = block_end(Branch(x, 1, None, filters, line), None, shortcut, with_mask=True)
    assert mask is not None
    assert mask.shape == (N, 4, HEIGHT, WIDTH)
    passes = ~(before <= 0)
    assert not passes[:, 3].any()
    assert torch.equal(mask, mask_of(passes))
    torch.testing.assert_close(out, F.relu(before), rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("small_products")
def test_what_is_rounded_to_zero_does_not_pass() -> None:
    """As in eager, where the ReLU sees what is stored."""
    x, filters = random(N, K, HEIGHT, WIDTH, dtype=torch.float16), random(ODD, K, 1, 1, dtype=torch.float16)
    less_than_fp16_has = torch.zeros(ODD, device=DEVICE) + 2.0**-26
    line = torch.stack((torch.zeros_like(less_than_fp16_has),) * 2 + (less_than_fp16_has,))
    out, mask = block_end(Branch(x, 1, None, filters, line), None, None, with_mask=True)
    assert mask is not None
    assert not out.any()
    assert not mask.any()


@pytest.mark.usefixtures("small_products")
def test_what_a_mask_closes_is_not_even_looked_at() -> None:
    """NaN times zero would be NaN."""
    x = random(N, K, HEIGHT, WIDTH, dtype=EXACT)
    kept = random(N, ODD, HEIGHT, WIDTH, seed=2) > 0
    dy = random(N, ODD, HEIGHT, WIDTH, dtype=EXACT)
    dy[~kept] = float("nan")
    products, sums = filter_gradient(dy, mask_of(kept), x, 1, with_sums=True)
    d = rows(dy.masked_fill(~kept, 0.0))
    assert sums is not None
    torch.testing.assert_close(products.sum(0).double(), d.T @ rows(x), rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(sums.sum(0).double(), d.sum(0), rtol=CLOSE, atol=CLOSE)
