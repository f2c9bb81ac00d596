"""BatchNorm's statistics of a 1x1 convolution, from its input: its result need not exist.

A 1x1 convolution is a linear map y -> W y of every pixel, so that the mean and the variance of its result follow from
those of its input, whatever the number of pixels:

    mean = W m,  var_n = W_n cov W_n^T,  with m = mean of y, cov = sum (y - m)(y - m)^T / rows

The sum of products (the Gram matrix) costs K / N of the convolution's work and one read of its input. Where |m| >> std,
sum y y^T / rows - m m^T would cancel: sums are taken of y - centre, the mean of a sample of the rows, and what is left
of m is taken out exactly. With a sample of b of all n rows |centre - m|^2 <= n / b * variance (Cauchy-Schwarz), for
rows in no order about variance / b. The difference is rounded to the dtype of y: had the centre finer digits than y,
all y of one size would be rounded to the same side, and their sum would be off by as many times that. It is a multiple
of twice the last place of the largest y of the sample.

Of a filter nearly orthogonal to all variation the variance is a small difference of large terms, whose rounding may
leave it below zero, or so far below the truth that the result would be blown up. Rounding cannot tell a variance below
ROUNDINGS eps (sum |W_nk| std of y_k)^2 from one of that size, and no smaller one is taken.

Launches, of which `_gram` alone reads all of y, and no other anything of its size:

    _prepare            merges y's own BatchNorm (its line), takes the centre of a sample of relu(bn(x)) or x
    _gram               products of blocks of channels, i <= j, split over rows; and sums of channels
    _covariance         merges the splits, all in the same order
    _filter_statistics  mean and variance of every filter's result, and W cov for the backward pass
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.kernel import Norm
from kernels.launch import Matrix
from kernels.normalise import branch, kept, normalised, rstd_and_scale, shift_of
from kernels.product import (
    Pixels,
    ProductLaunch,
    activation_tile,
    merged,
    merged_at_once,
    product_precision,
    row_product_launch,
    small_block,
    source_rows,
)
from kernels.runtime import Budget, launch_kernel

SAMPLED_ROWS = 128
SAMPLED_CHANNELS = 64  # of a program
SMALLEST: tl.constexpr = tl.constexpr(2.0**-14)  # y below that count as it: there fp16 has fewer digits
MERGED_CHANNELS = 16  # of a side of the covariance, of a program
INTERPRETED_MERGED = 256
ROUNDINGS = 2  # in units of eps of sums, of the terms of a variance
FILTERS = 32  # of a program
FILTER_CHANNELS = 64  # multiplied at a time


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
    known = channels < C
    taken = tl.arange(0, BLOCK_ROWS)
    inside = (taken < sample)[:, None] & known[None, :]
    source = source_rows(taken.to(tl.int64) * step, pixels, width, source_pixels, source_width, STRIDE)
    x = tl.load(x_ptr + (source * C)[:, None] + channels[None, :], mask=inside, other=0.0)
    acc = centre_ptr.dtype.element_ty
    if partials_ptr is not None:
        mean, scale, shift = branch(
            partials_ptr, None, None, weight_ptr, bias_ptr, statistics_ptr, channels, rows, C, rows_per_part, parts, EPS
        )
        tl.store(line_ptr + channels, mean, mask=known)
        tl.store(line_ptr + C + channels, scale, mask=known)
        tl.store(line_ptr + 2 * C + channels, shift, mask=known)
        y = normalised(x.to(acc), mean, scale, shift).to(x.dtype)
        x = tl.where(inside & kept(y), y, 0.0)
    largest = tl.maximum(tl.max(tl.abs(x.to(acc)), axis=0), SMALLEST)
    place = PLACE * tl.exp2(tl.floor(tl.log2(largest)))
    centre = tl.floor(tl.sum(x.to(acc), axis=0) / sample / place + 0.5) * place
    tl.store(centre_ptr + channels, centre, mask=known)


@triton.jit
def _gram(
    products_ptr,  # [splits, C, C], written where the block of the first index is not behind that of the second
    sums_ptr,  # [splits, C], written
    x_ptr,  # [source rows, C]
    line_ptr,  # [3, C] or None
    centre_ptr,  # [C]
    rows, C, pixels, width, source_pixels, source_width, rows_per_split,
    STRIDE: tl.constexpr, PRECISION: tl.constexpr, BLOCKS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) // BLOCKS
    j = tl.program_id(0) % BLOCKS
    if i > j:
        return
    acc = products_ptr.dtype.element_ty
    split = tl.program_id(1).to(tl.int64)
    of_i = i * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    of_j = j * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, rows)
    product = tl.zeros([BLOCK_CHANNELS, BLOCK_CHANNELS], dtype=acc)
    total = tl.zeros([BLOCK_CHANNELS], dtype=acc)
    for start in range(first, last, BLOCK_ROWS):
        at = start + tl.arange(0, BLOCK_ROWS)
        source = source_rows(at, pixels, width, source_pixels, source_width, STRIDE)
        left = activation_tile(x_ptr, line_ptr, centre_ptr, source, at < last, of_i, C)
        right = left
        if BLOCKS > 1:
            right = activation_tile(x_ptr, line_ptr, centre_ptr, source, at < last, of_j, C)
        product = tl.dot(tl.trans(left), right, product, input_precision=PRECISION)
        total += tl.sum(left.to(acc), axis=0)
    here = (of_i < C)[:, None] & (of_j < C)[None, :]
    out = products_ptr + split * C * C + of_i[:, None] * C + of_j[None, :]
    tl.store(out, product, mask=here)
    if i == j:
        tl.store(sums_ptr + split * C + of_i, total, mask=of_i < C)


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
    at = i[:, None] * C + j[None, :]
    written = at
    if tl.program_id(0) * BLOCK // GRAM_BLOCK > tl.program_id(1) * BLOCK // GRAM_BLOCK:
        written = j[None, :] * C + i[:, None]
    inside = (i < C)[:, None] & (j < C)[None, :]
    flat = tl.reshape(written, [BLOCK * BLOCK])
    product = merged(products_ptr, flat, tl.reshape(inside, [BLOCK * BLOCK]), C * C, splits, MERGED)
    count = tl.cast(rows, covariance_ptr.dtype.element_ty)
    offset_i = merged(sums_ptr, i, i < C, C, splits, MERGED) / count
    offset_j = merged(sums_ptr, j, j < C, C, splits, MERGED) / count
    covariance = tl.reshape(product, [BLOCK, BLOCK]) / count - offset_i[:, None] * offset_j[None, :]
    tl.store(covariance_ptr + at, covariance, mask=inside)
    tl.store(offset_ptr + i, offset_i, mask=(i < C) & (tl.program_id(1) == 0))


@triton.jit
def _filter_statistics(
    statistics_ptr,  # [2, N], written: mean and biased variance of every filter's result
    line_ptr,  # [3, N], written: mean, scale and shift of its BatchNorm
    varied_ptr,  # [N, C], written: filters @ covariance
    filters_ptr,  # [N, C]
    covariance_ptr,  # [C, C]
    offset_ptr, centre_ptr,  # [C]
    weight_ptr, bias_ptr,  # [N]
    N, C,
    EPS: tl.constexpr, ROUNDING: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_FILTERS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    acc = statistics_ptr.dtype.element_ty
    filters = tl.program_id(0) * BLOCK_FILTERS + tl.arange(0, BLOCK_FILTERS)
    mean = tl.zeros([BLOCK_FILTERS], dtype=acc)
    var = tl.zeros([BLOCK_FILTERS], dtype=acc)
    terms = tl.zeros([BLOCK_FILTERS], dtype=acc)
    for first in range(0, C, BLOCK_CHANNELS):
        channels = first + tl.arange(0, BLOCK_CHANNELS)
        varied = tl.zeros([BLOCK_FILTERS, BLOCK_CHANNELS], dtype=acc)
        for start in range(0, C, BLOCK_CHANNELS):
            inner = start + tl.arange(0, BLOCK_CHANNELS)
            left = _filter_tile(filters_ptr, filters, inner, N, C).to(acc)
            inside = (inner < C)[:, None] & (channels < C)[None, :]
            right = tl.load(covariance_ptr + inner[:, None] * C + channels[None, :], mask=inside, other=0.0)
            varied = tl.dot(left, right, varied, input_precision=PRECISION)
        weights = _filter_tile(filters_ptr, filters, channels, N, C).to(acc)
        offset = tl.load(offset_ptr + channels, mask=channels < C, other=0.0)
        centre = tl.load(centre_ptr + channels, mask=channels < C, other=0.0)
        mean += tl.sum(weights * (centre + offset)[None, :], axis=1)
        var += tl.sum(weights * varied, axis=1)
        own = tl.load(covariance_ptr + channels * (C + 1), mask=channels < C, other=0.0)
        terms += tl.sum(tl.abs(weights) * tl.sqrt(tl.maximum(own, 0.0))[None, :], axis=1)
        inside = (filters < N)[:, None] & (channels < C)[None, :]
        tl.store(varied_ptr + filters[:, None] * C + channels[None, :], varied, mask=inside)
    var = tl.maximum(var, ROUNDING * terms * terms, propagate_nan=tl.PropagateNan.ALL)
    tl.store(statistics_ptr + filters, mean, mask=filters < N)
    tl.store(statistics_ptr + N + filters, var, mask=filters < N)
    _, scale = rstd_and_scale(var, weight_ptr, filters, N, EPS)
    tl.store(line_ptr + filters, mean, mask=filters < N)
    tl.store(line_ptr + N + filters, scale, mask=filters < N)
    tl.store(line_ptr + 2 * N + filters, shift_of(bias_ptr, mean, filters, N), mask=filters < N)


@triton.jit
def _filter_tile(filters_ptr, filters, channels, N, C):
    inside = (filters < N)[:, None] & (channels < C)[None, :]
    return tl.load(filters_ptr + filters[:, None] * C + channels[None, :], mask=inside, other=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a 1x1 convolution takes: relu(bn(x)) or x itself, at a stride, and what `gram_statistics` found of it."""

    x: Tensor  # [N, C, H, W], channels_last
    stride: int
    line: Tensor | None  # [3, C]: mean, scale and shift of the BatchNorm; None: x itself
    moments: Tensor  # [2, C]: what is subtracted before products over all rows; the mean over all rows, less that

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
    """The input of a 1x1 convolution, its covariance, and the statistics of its own BatchNorm.

    Args:
        x: [N, C, H, W], channels_last.
        stride: of the convolution.
        norm: the BatchNorm and ReLU that lie between x and the convolution, if any.
        partials: [1, 2, parts, C], the partial statistics of x where there is a norm.
        rows_per_part: the rows of a part.

    Returns:
        The source; its covariance [C, C]; and the mean and biased variance [2, C] of x where there is a norm.
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
    """[C, C]; writes the source's offset."""
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
        budget=lambda: Budget(read=products.nbytes + sums.nbytes, written=covariance.nbytes + source.offset.nbytes),
    )  # fmt: skip
    return covariance


def _pairs(plan: ProductLaunch, blocks: int) -> int:
    """Elements of the blocks that are computed."""
    return plan.block_columns**2 * blocks * (blocks + 1) // 2


class Results(NamedTuple):
    """What is known of the result of a 1x1 convolution that has not been computed."""

    statistics: Tensor  # [2, N]: mean and biased variance
    line: Tensor  # [3, N]: its BatchNorm as mean, scale and shift
    varied: Tensor  # [N, C]: filters @ covariance


def gram_statistics(source: Source, covariance: Tensor, filters: Tensor, norm: Norm) -> Results:
    """Of a 1x1 convolution of a source by filters [N, C, 1, 1] and its BatchNorm.

    Nothing of the size of an activation is read.
    """
    columns, channels = map(int, filters.shape[:2])
    results = Results(
        covariance.new_empty((2, columns)),
        covariance.new_empty((3, columns)),
        covariance.new_empty((columns, channels)),
    )
    block = small_block(FILTERS, columns)
    launch_kernel(
        _filter_statistics, (triton.cdiv(columns, block),),
        *results, filters, covariance, source.offset, source.centre, norm.weight, norm.bias, columns, channels,
        EPS=norm.eps, ROUNDING=ROUNDINGS * torch.finfo(covariance.dtype).eps, PRECISION=small_precision(filters.dtype),
        BLOCK_FILTERS=block, BLOCK_CHANNELS=small_block(FILTER_CHANNELS, channels),
        num_warps=8, num_stages=2,
        budget=lambda: Budget(
            read=filters.nbytes + covariance.nbytes + source.moments.nbytes,
            written=sum(result.nbytes for result in results),
            flops=2 * columns * channels**2,
        ),
    )  # fmt: skip
    return results


def small_precision(dtype: torch.dtype) -> str:
    """How fp32 matrices that stand beside filters of a dtype are multiplied: 16 bits are exact in TF32."""
    return "tf32x3" if dtype.itemsize == 2 else "ieee"  # noqa: PLR2004 - bytes
