"""The backward pass of a BatchNorm and a 1x1 convolution whose result is never written: the part without rows.

With D the gradient of the BatchNorm's result, P = D^T (y - centre), s = sum D (`kernels.products.filter_gradient`), and
from the forward pass W, mean, r = 1 / sqrt(var + eps), a = weight r, V = W cov, delta = mean of y - centre, n rows:

    dbias = s
    dweight = r (sum over channels of P W  -  s (W delta))
    dW = a (P - s delta^T - dweight r V)
    dy = D (a W) - (y - centre) H + h
    H = W^T diag(e) W,  h = (e (W delta)) W - (s / n) (a W),  e = a r dweight / n

which is Ioffe and Szegedy, "Batch Normalization" (2015), section 3, with x_hat = r (W y - mean) substituted. All sums
are taken around the centre of y, so that nothing cancels where |mean| >> std.

a W and H are rounded once and then multiply every row: in a sum of dy over rows, which the preceding BatchNorm takes,
their errors add up, while those of single values average out. Hence h removes the mean of D by the rounded a W, and
where there is such a BatchNorm, the diagonal of H, whose terms in the sum all have one sign, stays in the precision of
sums.

`_parameter_gradients` merges the parts of P and s; `_inner_filters` writes [a W; -H] for `kernels.gram.inner_gradient`
in the dtype of the filters, and the diagonal of H separately. In fp16 a W may overflow (a filter whose result hardly
varies, or a large weight) or underflow, and H, which is as small as the gradient, may underflow: each is multiplied by
a power of two that brings it to LARGEST, and `unscale` undoes that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.batch_norm.normalise import saved_statistics
from kernels.gram.covariance import Source
from kernels.gram.statistics import small_precision
from kernels.kernel import Norm
from kernels.launch.runtime import Budget, launch_kernel
from kernels.products.operands import merged
from kernels.products.plans import merged_at_once, product_precision, small_block

FILTERS = 16  # per program of _parameter_gradients
INTERPRETED_FILTERS = 128
CHANNELS = 32  # per program, along each side of H
MERGED_CHANNELS = 32  # merged at a time
INNER_FILTERS = 32  # multiplied at a time
FP16_LARGEST = 2.0**14  # the target for a W, and for a bound of H: a quarter of the range of fp16
MOST_SCALED: tl.constexpr = tl.constexpr(
    40.0
)  # the exponent of a factor: two factors and a sum over rows do not overflow


@triton.jit
def _merged_product(
    products_ptr, filters, channels, N, C, splits, MERGED: tl.constexpr, FILTERS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Merge P [F, B] from its parts [splits, N, C]."""
    indices = tl.reshape(filters[:, None] * C + channels[None, :], [FILTERS * CHANNELS])
    valid = tl.reshape((filters < N)[:, None] & (channels < C)[None, :], [FILTERS * CHANNELS])
    return tl.reshape(merged(products_ptr, indices, valid, N * C, splits, MERGED), [FILTERS, CHANNELS])


@triton.jit
def _parameter_gradients(
    dfilters_ptr,  # [N, C], written; or None
    dweight_ptr, dbias_ptr,  # [N], written; or None
    terms_ptr,  # [5, N], written: a, e, e (W delta), s / n, the largest |W|
    products_ptr,  # [splits, N, C]
    sums_ptr,  # [sum_splits, N]
    filters_ptr,  # [N, C]
    varied_ptr,  # [N, C]: V
    offset_ptr,  # [C]: delta
    statistics_ptr,  # [2, N]
    weight_ptr,  # [N]
    rows, N, C, splits, sum_splits,
    EPS: tl.constexpr, MERGED: tl.constexpr, FILTERS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    acc = products_ptr.dtype.element_ty
    filters = tl.program_id(0) * FILTERS + tl.arange(0, FILTERS)
    valid = filters < N
    _, rstd, scale = saved_statistics(statistics_ptr, weight_ptr, filters, N, EPS)
    total = merged(sums_ptr, filters, valid, N, sum_splits, MERGED)
    along = tl.zeros([FILTERS], dtype=acc)
    moved = tl.zeros([FILTERS], dtype=acc)
    largest = tl.zeros([FILTERS], dtype=acc)
    for first in range(0, C, CHANNELS):
        channels = first + tl.arange(0, CHANNELS)
        inside = valid[:, None] & (channels < C)[None, :]
        weights = tl.load(filters_ptr + filters[:, None] * C + channels[None, :], mask=inside, other=0.0).to(acc)
        offset = tl.load(offset_ptr + channels, mask=channels < C, other=0.0)
        product = _merged_product(products_ptr, filters, channels, N, C, splits, MERGED, FILTERS, CHANNELS)
        along += tl.sum(product * weights, axis=1)
        moved += tl.sum(weights * offset[None, :], axis=1)
        largest = tl.maximum(largest, tl.max(tl.abs(weights), axis=1))
    dweight = rstd * (along - total * moved)
    count = tl.cast(rows, acc)
    slope = scale * rstd * dweight / count
    tl.store(terms_ptr + filters, scale, mask=valid)
    tl.store(terms_ptr + N + filters, slope, mask=valid)
    tl.store(terms_ptr + 2 * N + filters, slope * moved, mask=valid)
    tl.store(terms_ptr + 3 * N + filters, total / count, mask=valid)
    tl.store(terms_ptr + 4 * N + filters, largest, mask=valid)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + filters, total.to(dbias_ptr.dtype.element_ty), mask=valid)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + filters, dweight.to(dweight_ptr.dtype.element_ty), mask=valid)
    if dfilters_ptr is not None:
        for first in range(0, C, CHANNELS):
            channels = first + tl.arange(0, CHANNELS)
            inside = valid[:, None] & (channels < C)[None, :]
            indices = filters[:, None] * C + channels[None, :]
            varied = tl.load(varied_ptr + indices, mask=inside, other=0.0)
            offset = tl.load(offset_ptr + channels, mask=channels < C, other=0.0)
            product = _merged_product(products_ptr, filters, channels, N, C, splits, MERGED, FILTERS, CHANNELS)
            inner = product - total[:, None] * offset[None, :] - (dweight * rstd)[:, None] * varied
            tl.store(dfilters_ptr + indices, (scale[:, None] * inner).to(dfilters_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _larger(bound, LARGEST: tl.constexpr):
    """The power of two that brings a bound to LARGEST."""
    places = tl.floor(tl.log2(LARGEST / tl.maximum(bound, 1 / LARGEST**2)))
    return tl.exp2(tl.minimum(tl.maximum(places, -MOST_SCALED), MOST_SCALED))


@triton.jit
def _scales(terms_ptr, N, LARGEST: tl.constexpr, BLOCK_FILTERS: tl.constexpr):
    """The powers of two for a W and for H, no element of which is larger than sum |e| max |W|^2."""
    largest = tl.zeros([BLOCK_FILTERS], dtype=terms_ptr.dtype.element_ty)
    bound = tl.zeros([BLOCK_FILTERS], dtype=terms_ptr.dtype.element_ty)
    for start in range(0, N, BLOCK_FILTERS):
        filters = start + tl.arange(0, BLOCK_FILTERS)
        scale = tl.load(terms_ptr + filters, mask=filters < N, other=0.0)
        slope = tl.load(terms_ptr + N + filters, mask=filters < N, other=0.0)
        weight = tl.load(terms_ptr + 4 * N + filters, mask=filters < N, other=0.0)
        largest = tl.maximum(largest, tl.abs(scale) * weight)
        bound += tl.abs(slope) * weight * weight
    return _larger(tl.max(largest), LARGEST), _larger(tl.sum(bound), LARGEST)


@triton.jit
def _inner_filters(
    inner_ptr,  # [N + C, C], written: a W, then -H
    constant_ptr,  # [C], written: h
    diagonal_ptr,  # [C], written: the diagonal of H, which is then zero in -H; or None
    unscale_ptr,  # [2], written: the factors that undo the scaling of a W and of H; or None
    terms_ptr,  # [5, N]
    filters_ptr,  # [N, C]
    N, C,
    LARGEST: tl.constexpr, PRECISION: tl.constexpr, BLOCK_FILTERS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    acc = terms_ptr.dtype.element_ty
    first = tl.program_id(1) == 0
    columns = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    larger = 1.0
    larger_h = 1.0
    if LARGEST is not None:
        larger, larger_h = _scales(terms_ptr, N, LARGEST, BLOCK_FILTERS)
        if first & (tl.program_id(0) == 0):
            tl.store(unscale_ptr, 1.0 / larger)
            tl.store(unscale_ptr + 1, 1.0 / larger_h)
    product = tl.zeros([BLOCK_CHANNELS, BLOCK_CHANNELS], dtype=acc)
    constant = tl.zeros([BLOCK_CHANNELS], dtype=acc)
    diagonal = tl.zeros([BLOCK_CHANNELS], dtype=acc)
    for start in range(0, N, BLOCK_FILTERS):
        filters = start + tl.arange(0, BLOCK_FILTERS)
        valid = filters < N
        scale = tl.load(terms_ptr + filters, mask=valid, other=0.0)
        slope = tl.load(terms_ptr + N + filters, mask=valid, other=0.0)
        level = tl.load(terms_ptr + 2 * N + filters, mask=valid, other=0.0)
        mean = tl.load(terms_ptr + 3 * N + filters, mask=valid, other=0.0)
        inside = valid[:, None] & (channels < C)[None, :]
        left = tl.load(filters_ptr + filters[:, None] * C + channels[None, :], mask=inside, other=0.0).to(acc)
        inside = valid[:, None] & (columns < C)[None, :]
        indices = filters[:, None] * C + columns[None, :]
        right = tl.load(filters_ptr + indices, mask=inside, other=0.0).to(acc)
        product = tl.dot(tl.trans(left), slope[:, None] * right, product, input_precision=PRECISION)
        scaled = ((scale * larger)[:, None] * right).to(inner_ptr.dtype.element_ty)
        constant += tl.sum(level[:, None] * right - (mean / larger)[:, None] * scaled.to(acc), axis=0)
        diagonal += tl.sum(slope[:, None] * right * right, axis=0)
        tl.store(inner_ptr + indices, scaled, mask=inside & first)
    if diagonal_ptr is not None:
        product = tl.where(channels[:, None] == columns[None, :], 0.0, product)
        tl.store(diagonal_ptr + columns, diagonal, mask=(columns < C) & first)
    indices = (N + channels)[:, None] * C + columns[None, :]
    inside = (channels < C)[:, None] & (columns < C)[None, :]
    tl.store(inner_ptr + indices, (-larger_h * product).to(inner_ptr.dtype.element_ty), mask=inside)
    tl.store(constant_ptr + columns, constant, mask=(columns < C) & first)


class ParameterGradients(NamedTuple):
    """The gradients of a convolution's filters and BatchNorm, None if not needed; and terms of the gradient of y."""

    filters: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    terms: Tensor  # [5, N], for `inner_filters`


class InnerFilters(NamedTuple):
    """The factors of `kernels.gram.inner_gradient`."""

    filters: Tensor  # [N + C, C]
    constant: Tensor  # [C]
    diagonal: Tensor | None  # [C]
    unscale: Tensor | None  # [2]


def parameter_gradients(
    products: Tensor,
    sums: Tensor,
    source: Source,
    filters: Tensor,
    varied: Tensor,
    statistics: Tensor,
    norm: Norm,
    parameters: Sequence[Tensor | None],
) -> ParameterGradients:
    """Compute the gradients of a 1x1 convolution's filters and of its BatchNorm.

    Args:
        products: [splits, N, C], D^T (y - centre) in parts.
        sums: [sum splits, N], D summed in parts; the two convolutions of a block share them, so splits may differ.
        source: the input of the convolution.
        filters: [N, C, 1, 1], as the forward pass multiplied them.
        varied: [N, C], filters @ covariance.
        statistics: [2, N], mean and biased variance.
        norm: the BatchNorm.
        parameters: filters, weight and bias, which give the dtypes of the gradients; None where none is needed.
    """
    splits, columns, channels = map(int, products.shape)
    # kernels write them contiguous; of contiguous filters, strides of sides of length 1 may be those of channels_last
    dfilters, dweight, dbias = (
        None if parameter is None else torch.empty_like(parameter.contiguous()) for parameter in parameters
    )
    terms = products.new_empty((5, columns))
    block = small_block(FILTERS, columns, interpreted=INTERPRETED_FILTERS)
    launch_kernel(
        _parameter_gradients, (triton.cdiv(columns, block),),
        dfilters, dweight, dbias, terms, products, sums, filters, varied, source.offset, statistics, norm.weight,
        source.pixels.rows, columns, channels, splits, sums.shape[0],
        EPS=norm.eps, MERGED=merged_at_once(splits), FILTERS=block, CHANNELS=small_block(MERGED_CHANNELS, channels),
        num_warps=8,
        budget=lambda: Budget(
            read=products.nbytes + sums.nbytes + filters.nbytes + varied.nbytes,
            written=sum(tensor.nbytes for tensor in (dfilters, dweight, dbias, terms) if tensor is not None),
        ),
    )  # fmt: skip
    return ParameterGradients(dfilters, dweight, dbias, terms)


def inner_filters(terms: Tensor, filters: Tensor, *, summed: bool) -> InnerFilters:
    """Compute [a W; -H] and h from the terms of `parameter_gradients` and filters [N, C, 1, 1].

    Args:
        terms: [5, N].
        filters: as the forward pass multiplied them.
        summed: the gradient will be summed over rows, so keep the diagonal of H separately, unrounded.
    """
    columns, channels = map(int, filters.shape[:2])
    inner = filters.new_empty((columns + channels, channels))
    constant = terms.new_empty((channels,))
    diagonal = torch.empty_like(constant) if summed else None
    unscale = terms.new_empty((2,)) if filters.dtype == torch.float16 else None
    block = small_block(CHANNELS, channels)
    blocks = triton.cdiv(channels, block)
    launch_kernel(
        _inner_filters, (blocks, blocks),
        inner, constant, diagonal, unscale, terms, filters, columns, channels,
        LARGEST=None if unscale is None else FP16_LARGEST,
        PRECISION="tf32" if small_precision(filters.dtype) == "tf32x3" else product_precision(filters.dtype),
        BLOCK_FILTERS=small_block(INNER_FILTERS, columns), BLOCK_CHANNELS=block, num_warps=4, num_stages=2,
        budget=lambda: Budget(
            read=filters.nbytes + terms.nbytes,
            written=inner.nbytes + constant.nbytes + (0 if diagonal is None else diagonal.nbytes),
            flops=2 * columns * channels**2,
        ),
    )  # fmt: skip
    return InnerFilters(inner, constant, diagonal, unscale)
