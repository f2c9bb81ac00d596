"""The statistics of a 1x1 convolution's result, from the covariance of its input, without computing the result.

A 1x1 convolution is a linear map y -> W y of every pixel, so that the mean and the variance of its result follow from
those of its input (`kernels.gram.covariance`), whatever the number of pixels:

    mean = W m,  var_n = W_n cov W_n^T,  with m = mean of y, cov = sum (y - m)(y - m)^T / rows

For a filter nearly orthogonal to all variation the variance is a small difference of large terms. Rounding may make it
negative, or so much too small that normalising by it would blow up the result. A variance below
ROUNDINGS eps (sum |W_nk| std of y_k)^2 cannot be told from rounding errors, so that is its lower bound.

Launches, neither of which reads anything of the size of an activation:

    _varied              W cov, which the backward pass needs too
    _filter_statistics   mean and variance of every filter's result, and its BatchNorm as a line
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.batch_norm.normalise import rstd_and_scale, shift_of
from kernels.gram.covariance import Source
from kernels.kernel import Norm
from kernels.launch.runtime import Budget, launch_kernel
from kernels.products.plans import small_block

ROUNDINGS = 2  # the lower bound of a variance, in units of eps (of the dtype of sums) of its terms
VARIED_FILTERS, VARIED_CHANNELS = 32, 32  # per program of _varied, which multiplies as many channels at a time
FILTERS, CHANNELS = 16, 128  # per program of _filter_statistics, and per step


@triton.jit
def _varied(
    varied_ptr,  # [N, C], written: filters @ covariance
    filters_ptr,  # [N, C]
    covariance_ptr,  # [C, C]
    N, C,
    PRECISION: tl.constexpr, BLOCK_FILTERS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    acc = varied_ptr.dtype.element_ty
    filters = tl.program_id(0) * BLOCK_FILTERS + tl.arange(0, BLOCK_FILTERS)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    varied = tl.zeros([BLOCK_FILTERS, BLOCK_CHANNELS], dtype=acc)
    for start in range(0, C, BLOCK_CHANNELS):
        inner = start + tl.arange(0, BLOCK_CHANNELS)
        inside = (filters < N)[:, None] & (inner < C)[None, :]
        left = tl.load(filters_ptr + filters[:, None] * C + inner[None, :], mask=inside, other=0.0).to(acc)
        inside = (inner < C)[:, None] & (channels < C)[None, :]
        right = tl.load(covariance_ptr + inner[:, None] * C + channels[None, :], mask=inside, other=0.0)
        varied = tl.dot(left, right, varied, input_precision=PRECISION)
    inside = (filters < N)[:, None] & (channels < C)[None, :]
    tl.store(varied_ptr + filters[:, None] * C + channels[None, :], varied, mask=inside)


@triton.jit
def _filter_statistics(
    statistics_ptr,  # [2, N], written: mean and biased variance of every filter's result
    line_ptr,  # [3, N], written: mean, scale and shift of its BatchNorm
    varied_ptr,  # [N, C] of _varied
    filters_ptr,  # [N, C]
    covariance_ptr,  # [C, C]
    offset_ptr, centre_ptr,  # [C]
    weight_ptr, bias_ptr,  # [N]
    N, C,
    EPS: tl.constexpr, ROUNDING: tl.constexpr, BLOCK_FILTERS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    acc = statistics_ptr.dtype.element_ty
    filters = tl.program_id(0) * BLOCK_FILTERS + tl.arange(0, BLOCK_FILTERS)
    valid = filters < N
    mean = tl.zeros([BLOCK_FILTERS], dtype=acc)
    var = tl.zeros([BLOCK_FILTERS], dtype=acc)
    terms = tl.zeros([BLOCK_FILTERS], dtype=acc)
    for first in range(0, C, BLOCK_CHANNELS):
        channels = first + tl.arange(0, BLOCK_CHANNELS)
        indices = filters[:, None] * C + channels[None, :]
        inside = valid[:, None] & (channels < C)[None, :]
        weights = tl.load(filters_ptr + indices, mask=inside, other=0.0).to(acc)
        varied = tl.load(varied_ptr + indices, mask=inside, other=0.0)
        offset = tl.load(offset_ptr + channels, mask=channels < C, other=0.0)
        centre = tl.load(centre_ptr + channels, mask=channels < C, other=0.0)
        own = tl.load(covariance_ptr + channels * (C + 1), mask=channels < C, other=0.0)
        mean += tl.sum(weights * (centre + offset)[None, :], axis=1)
        var += tl.sum(weights * varied, axis=1)
        terms += tl.sum(tl.abs(weights) * tl.sqrt(tl.maximum(own, 0.0))[None, :], axis=1)
    var = tl.maximum(var, ROUNDING * terms * terms, propagate_nan=tl.PropagateNan.ALL)
    tl.store(statistics_ptr + filters, mean, mask=valid)
    tl.store(statistics_ptr + N + filters, var, mask=valid)
    _, scale = rstd_and_scale(var, weight_ptr, filters, N, EPS)
    tl.store(line_ptr + filters, mean, mask=valid)
    tl.store(line_ptr + N + filters, scale, mask=valid)
    tl.store(line_ptr + 2 * N + filters, shift_of(bias_ptr, mean, filters, N), mask=valid)


class Results(NamedTuple):
    """The statistics of the result of a 1x1 convolution that is not computed."""

    statistics: Tensor  # [2, N]: mean and biased variance
    line: Tensor  # [3, N]: its BatchNorm as mean, scale and shift
    varied: Tensor  # [N, C]: filters @ covariance


def result_statistics(source: Source, covariance: Tensor, filters: Tensor, norm: Norm) -> Results:
    """Compute the statistics of a 1x1 convolution of a source (covariance [C, C]) by filters [N, C, 1, 1]."""
    columns, channels = map(int, filters.shape[:2])
    results = Results(
        covariance.new_empty((2, columns)),
        covariance.new_empty((3, columns)),
        covariance.new_empty((columns, channels)),
    )
    filter_block, channel_block = small_block(VARIED_FILTERS, columns), small_block(VARIED_CHANNELS, channels)
    launch_kernel(
        _varied, (triton.cdiv(columns, filter_block), triton.cdiv(channels, channel_block)),
        results.varied, filters, covariance, columns, channels,
        PRECISION=small_precision(filters.dtype), BLOCK_FILTERS=filter_block, BLOCK_CHANNELS=channel_block,
        num_warps=4, num_stages=2,
        budget=lambda: Budget(
            read=filters.nbytes + covariance.nbytes,
            written=results.varied.nbytes,
            flops=2 * columns * channels**2,
        ),
    )  # fmt: skip
    filter_block = small_block(FILTERS, columns)
    launch_kernel(
        _filter_statistics, (triton.cdiv(columns, filter_block),),
        *results, filters, covariance, source.offset, source.centre, norm.weight, norm.bias, columns, channels,
        EPS=norm.eps, ROUNDING=ROUNDINGS * torch.finfo(covariance.dtype).eps,
        BLOCK_FILTERS=filter_block, BLOCK_CHANNELS=small_block(CHANNELS, channels), num_warps=4,
        budget=lambda: Budget(
            read=results.varied.nbytes + filters.nbytes + channels * covariance.itemsize + source.moments.nbytes,
            written=results.statistics.nbytes + results.line.nbytes,
        ),
    )  # fmt: skip
    return results


def small_precision(dtype: torch.dtype) -> str:
    """Return how to multiply filters of a dtype by fp32 matrices: filters of 16 bits are exact in TF32."""
    return "tf32x3" if dtype.itemsize == 2 else "ieee"  # noqa: PLR2004 - bytes
