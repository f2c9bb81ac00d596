"""Mean and covariance of the input of a 1x1 convolution, from which the statistics of its result follow.

The sum of products over all rows (the Gram matrix) costs K / N of the convolution's work and one read of its input y;
`kernels.gram.statistics` computes the statistics from it. Where |mean| >> std, sum y y^T / rows - m m^T would cancel:
sums are taken of y - centre, the centre being the mean of a sample of the rows, and the rest of the mean m is removed
exactly. With a sample of b of all n rows |centre - m|^2 <= n / b * variance (Cauchy-Schwarz), about variance / b for
rows in random order. The difference is rounded to the dtype of y. If the centre had finer digits than y, all y of one
size would be rounded in the same direction, and those errors would add up in the sum; so it is a multiple of twice the
last place of the largest y of the sample.

Launches, of which `_gram` alone reads anything of the size of y:

    _prepare      merges the statistics of y's own BatchNorm (its line), computes the centre of relu(bn(x)) or x
    _gram         products of blocks of channels, i <= j, split over rows; and sums of channels
    _covariance   merges the splits, all in the same order
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.batch_norm.normalise import branch, kept, normalised
from kernels.kernel import Norm
from kernels.launch.layout import Matrix
from kernels.launch.runtime import TRITON, Budget, architecture, launch_kernel
from kernels.products.operands import Pixels, activation_tile, merged, source_rows
from kernels.products.plans import ProductLaunch, merged_at_once, product_precision, row_product_launch, small_block

SAMPLED_ROWS = 128
SAMPLED_CHANNELS = 64  # per program
SMALLEST: tl.constexpr = tl.constexpr(2.0**-14)  # smaller y count as this: below it fp16 has fewer digits
_OWN_TRANSPOSE = (3, 8)  # an older Triton (3.6 at least) fails to multiply a tile by its own transpose on Blackwell
MERGED_CHANNELS = 16  # per program, along each side of the covariance
INTERPRETED_MERGED = 256


@triton.jit
def _prepare(
    centre_ptr,  # [C], written: the mean of a sample, rounded
    line_ptr,  # [3, C], written: mean, scale and shift of the BatchNorm; None without partials
    statistics_ptr,  # [2, C], written: mean and variance; None without partials
    x_ptr,  # [source rows, C]
    partials_ptr,  # [1, 2, parts, C] of x, or None: x is taken as it is
    weight_ptr, bias_ptr,  # [C]
    rows, C, rows_per_part, parts, sample, step, pixels, width, source_pixels, source_width,
    EPS: tl.constexpr, STRIDE: tl.constexpr, PLACE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    valid = channels < C
    sample_rows = tl.arange(0, BLOCK_ROWS)
    inside = (sample_rows < sample)[:, None] & valid[None, :]
    source = source_rows(sample_rows.to(tl.int64) * step, pixels, width, source_pixels, source_width, STRIDE)
    x = tl.load(x_ptr + (source * C)[:, None] + channels[None, :], mask=inside, other=0.0)
    acc = centre_ptr.dtype.element_ty
    if partials_ptr is not None:
        mean, scale, shift = branch(
            partials_ptr, None, None, weight_ptr, bias_ptr, statistics_ptr, channels, rows, C, rows_per_part, parts, EPS
        )
        tl.store(line_ptr + channels, mean, mask=valid)
        tl.store(line_ptr + C + channels, scale, mask=valid)
        tl.store(line_ptr + 2 * C + channels, shift, mask=valid)
        y = normalised(x.to(acc), mean, scale, shift).to(x.dtype)
        x = tl.where(inside & kept(y), y, 0.0)
    largest = tl.maximum(tl.max(tl.abs(x.to(acc)), axis=0), SMALLEST)
    place = PLACE * tl.exp2(tl.floor(tl.log2(largest)))
    centre = tl.floor(tl.sum(x.to(acc), axis=0) / sample / place + 0.5) * place
    tl.store(centre_ptr + channels, centre, mask=valid)


@triton.jit
def _gram(
    products_ptr,  # [splits, C, C], written where the block of the first index is not after that of the second
    sums_ptr,  # [splits, C], written
    x_ptr,  # [source rows, C]
    line_ptr,  # [3, C] or None
    centre_ptr,  # [C]
    rows, C, pixels, width, source_pixels, source_width, rows_per_split,
    STRIDE: tl.constexpr, PRECISION: tl.constexpr, BLOCKS: tl.constexpr, COPIED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) // BLOCKS
    j = tl.program_id(0) % BLOCKS
    if i > j:
        return
    acc = products_ptr.dtype.element_ty
    split = tl.program_id(1).to(tl.int64)
    channels_i = i * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channels_j = j * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, rows)
    product = tl.zeros([BLOCK_CHANNELS, BLOCK_CHANNELS], dtype=acc)
    total = tl.zeros([BLOCK_CHANNELS], dtype=acc)
    for start in range(first, last, BLOCK_ROWS):
        tile_rows = start + tl.arange(0, BLOCK_ROWS)
        source = source_rows(tile_rows, pixels, width, source_pixels, source_width, STRIDE)
        left = activation_tile(x_ptr, line_ptr, centre_ptr, source, tile_rows < last, channels_i, C)
        right = left
        if COPIED:
            right = left + tl.zeros_like(left)
        if BLOCKS > 1:
            right = activation_tile(x_ptr, line_ptr, centre_ptr, source, tile_rows < last, channels_j, C)
        product = tl.dot(tl.trans(left), right, product, input_precision=PRECISION)
        total += tl.sum(left.to(acc), axis=0)
    inside = (channels_i < C)[:, None] & (channels_j < C)[None, :]
    out = products_ptr + split * C * C + channels_i[:, None] * C + channels_j[None, :]
    tl.store(out, product, mask=inside)
    if i == j:
        tl.store(sums_ptr + split * C + channels_i, total, mask=channels_i < C)


@triton.jit
def _covariance(
    covariance_ptr,  # [C, C], written
    offset_ptr,  # [C], written: mean - centre
    products_ptr,  # [splits, C, C] of _gram
    sums_ptr,  # [splits, C]
    rows, C, splits,
    GRAM_BLOCK: tl.constexpr, MERGED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    indices = i[:, None] * C + j[None, :]
    gram_indices = indices
    if tl.program_id(0) * BLOCK // GRAM_BLOCK > tl.program_id(1) * BLOCK // GRAM_BLOCK:
        gram_indices = j[None, :] * C + i[:, None]
    inside = (i < C)[:, None] & (j < C)[None, :]
    flat = tl.reshape(gram_indices, [BLOCK * BLOCK])
    product = merged(products_ptr, flat, tl.reshape(inside, [BLOCK * BLOCK]), C * C, splits, MERGED)
    count = tl.cast(rows, covariance_ptr.dtype.element_ty)
    offset_i = merged(sums_ptr, i, i < C, C, splits, MERGED) / count
    offset_j = merged(sums_ptr, j, j < C, C, splits, MERGED) / count
    covariance = tl.reshape(product, [BLOCK, BLOCK]) / count - offset_i[:, None] * offset_j[None, :]
    tl.store(covariance_ptr + indices, covariance, mask=inside)
    tl.store(offset_ptr + i, offset_i, mask=(i < C) & (tl.program_id(1) == 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The input of a 1x1 convolution, relu(bn(x)) or x itself, at a stride, with the mean from `gram_source`."""

    x: Tensor  # [N, C, H, W], channels_last
    stride: int
    line: Tensor | None  # [3, C]: mean, scale and shift of the BatchNorm; None: x itself
    moments: Tensor  # [2, C]: the centre; the mean over all rows, less the centre

    @property
    def centre(self) -> Tensor:
        return self.moments[0]

    @property
    def offset(self) -> Tensor:
        return self.moments[1]

    @property
    def pixels(self) -> Pixels:
        return Pixels.of(self.x, self.stride)


def gram_source(
    x: Tensor, stride: int, norm: Norm | None, partials: Tensor | None, rows_per_part: int
) -> tuple[Source, Tensor, Tensor | None]:
    """Compute the covariance of the input of a 1x1 convolution, and the statistics of the input's own BatchNorm.

    Args:
        x: [N, C, H, W], channels_last.
        stride: of the convolution.
        norm: the BatchNorm between x and the convolution, followed by a ReLU; None if there is none.
        partials: [1, 2, parts, C], the partial statistics of x if there is a norm.
        rows_per_part: the rows of a part.

    Returns:
        The source; its covariance [C, C]; and the mean and biased variance [2, C] of x if there is a norm.
    """
    channels, sums = int(x.shape[1]), Matrix.of(x).sums
    source = Source(x=x, stride=stride, line=None, moments=x.new_empty((2, channels), dtype=sums))
    pixels = source.pixels
    statistics = None
    if norm is not None:
        source = replace(source, line=x.new_empty((3, channels), dtype=sums))
        statistics = x.new_empty((2, channels), dtype=sums)
    sample = min(SAMPLED_ROWS, pixels.rows)
    block_channels = small_block(SAMPLED_CHANNELS, channels)
    parts_read = 0 if partials is None else partials.nbytes
    launch_kernel(
        _prepare, (1, triton.cdiv(channels, block_channels)),
        source.centre, source.line, statistics, x, partials, *(norm[:2] if norm else (None, None)),
        pixels.rows, channels, rows_per_part, 0 if partials is None else partials.shape[2],
        sample, pixels.rows // sample, *pixels.geometry,
        EPS=norm.eps if norm else None, STRIDE=stride, PLACE=2 * torch.finfo(x.dtype).eps,
        BLOCK_ROWS=triton.next_power_of_2(sample), BLOCK_CHANNELS=block_channels, num_warps=4,
        budget=lambda: Budget(
            read=sample * channels * x.itemsize + parts_read,
            written=(1 if norm is None else 6) * source.centre.nbytes,
        ),
    )  # fmt: skip
    return source, _covariance_of(source), statistics


def _covariance_of(source: Source) -> Tensor:
    """Compute the covariance [C, C] of a source, and write the source's offset."""
    x, pixels, channels = source.x, source.pixels, int(source.x.shape[1])
    plan = row_product_launch("gram", pixels.rows, channels, channels, x.dtype)
    products = source.centre.new_empty((plan.runs, channels, channels))
    sums = source.centre.new_empty((plan.runs, channels))
    blocks = triton.cdiv(channels, plan.block_columns)
    launch_kernel(
        _gram, plan.grid,
        products, sums, x, source.line, source.centre,
        pixels.rows, channels, *pixels.geometry, plan.rows_per_run,
        STRIDE=source.stride, PRECISION=product_precision(x.dtype), BLOCKS=blocks,
        COPIED=architecture().name == "sm_100" and TRITON < _OWN_TRANSPOSE,
        BLOCK_ROWS=plan.block_inner, BLOCK_CHANNELS=plan.block_columns,
        num_warps=plan.num_warps, num_stages=plan.num_stages, chosen_for=plan.product,
        budget=lambda: Budget(
            read=pixels.rows * channels * x.itemsize,
            written=_pairs(plan, blocks) * products.itemsize * plan.runs + sums.nbytes,
            flops=2 * pixels.rows * _pairs(plan, blocks),
        ),
    )  # fmt: skip
    covariance = products.new_empty((channels, channels))
    merged_channels = small_block(MERGED_CHANNELS, channels, interpreted=INTERPRETED_MERGED)
    block = min(merged_channels, plan.block_columns)  # within a block of the Gram matrix
    launch_kernel(
        _covariance, (triton.cdiv(channels, block), triton.cdiv(channels, block)),
        covariance, source.offset, products, sums, pixels.rows, channels, plan.runs,
        GRAM_BLOCK=plan.block_columns, MERGED=merged_at_once(plan.runs), BLOCK=block, num_warps=8,
        budget=lambda: Budget(
            read=_pairs(plan, blocks) * products.itemsize * plan.runs + sums.nbytes,
            written=covariance.nbytes + source.offset.nbytes,
        ),
    )  # fmt: skip
    return covariance


def _pairs(plan: ProductLaunch, blocks: int) -> int:
    """Count the elements of the blocks that are computed."""
    return plan.block_columns**2 * blocks * (blocks + 1) // 2
