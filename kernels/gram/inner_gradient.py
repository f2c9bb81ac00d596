"""The gradient of what a normalised 1x1 convolution took, without that convolution's result.

    dy2 = D (scale W) - (y - centre) H + h        products of rows [N] and [C] by filters [N + C, C]

D is the gradient behind the block's ReLU, made from dout and its mask on the way in; H and h are BatchNorm's two terms
with sums, pulled through the convolution (`kernels.gram.backward`). Where y = relu(bn(x)), the diagonal of H is applied
to each value by itself, the result goes through that ReLU, and the two sums that the BatchNorm's own backward pass
needs are taken (in parts, merged by `kernels.batch_norm.backward`).

Moves: R dout, R mask, R x (twice at most, the second time from L2), W dx, R filters. Work: 2 * rows * (N + C) * C.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.batch_norm.normalise import kept, saved_statistics
from kernels.gram.covariance import Source
from kernels.launch.layout import empty_laid_out_like
from kernels.launch.runtime import Budget, launch_kernel
from kernels.products.operands import activation_product, masked_product, on_line, source_rows
from kernels.products.plans import product_launch, product_precision


@triton.jit
def _inner_gradient(
    dx_ptr,  # [rows, C], written
    sums_ptr,  # [2, runs, C], written; None without a line
    dy_ptr,  # [rows, N]
    mask_ptr,  # [rows, N / 8]
    x_ptr,  # [source rows, C]
    line_ptr,  # [3, C] or None
    centre_ptr,  # [C]
    statistics_ptr,  # [2, C] of x; None without a line
    filters_ptr,  # [N + C, C]
    constant_ptr,  # [C]: h
    diagonal_ptr,  # [C]: that of H, where filters are without it; None without a line
    unscale_ptr,  # [2] or None: what the two products have to be multiplied by
    rows, N, C, pixels, width, source_pixels, source_width, rows_per_run,
    EPS: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    acc = constant_ptr.dtype.element_ty
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    known = columns < C
    if line_ptr is not None:
        total = tl.zeros([BLOCK_COLUMNS], dtype=acc)
        along = tl.zeros([BLOCK_COLUMNS], dtype=acc)
    first = tl.program_id(1).to(tl.int64) * rows_per_run
    last = tl.minimum(first + rows_per_run, rows)
    for start in range(first, last, BLOCK_ROWS):
        at = start + tl.arange(0, BLOCK_ROWS)
        inside = at < last
        here = inside[:, None] & known[None, :]
        source = source_rows(at, pixels, width, source_pixels, source_width, STRIDE)
        product = masked_product(
            tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype=acc), dy_ptr, mask_ptr, at, inside,
            filters_ptr, columns, N, C, PRECISION, BLOCK_ROWS, BLOCK_INNER,
        )  # fmt: skip
        if unscale_ptr is not None:
            product *= tl.load(unscale_ptr) / tl.load(unscale_ptr + 1)
        product = activation_product(
            product, x_ptr, line_ptr, centre_ptr, source, inside,
            filters_ptr + N * C, columns, C, C, False, PRECISION, BLOCK_INNER,
        )  # fmt: skip
        if unscale_ptr is not None:
            product *= tl.load(unscale_ptr + 1)
        g = product + tl.load(constant_ptr + columns, mask=known, other=0.0)[None, :]
        if line_ptr is not None:
            x = tl.load(x_ptr + (source * C)[:, None] + columns[None, :], mask=here, other=0.0)
            y = on_line(x.to(acc), line_ptr, columns, C).to(x.dtype)
            mean = tl.load(line_ptr + columns, mask=known, other=0.0)
            centre = tl.load(centre_ptr + columns, mask=known, other=0.0)
            diagonal = tl.load(diagonal_ptr + columns, mask=known, other=0.0)
            g -= (y.to(acc) - centre[None, :]) * diagonal[None, :]
            g = tl.where(here & kept(y), g, 0.0).to(dx_ptr.dtype.element_ty)
            total += tl.sum(g.to(acc), axis=0)
            along += tl.sum(g.to(acc) * (x.to(acc) - mean[None, :]), axis=0)
        tl.store(dx_ptr + (at * C)[:, None] + columns[None, :], g.to(dx_ptr.dtype.element_ty), mask=here)
    if line_ptr is not None:
        _, rstd, _ = saved_statistics(statistics_ptr, None, columns, C, EPS)
        run = sums_ptr + tl.program_id(1).to(tl.int64) * C + columns
        tl.store(run, total, mask=known)
        tl.store(run + tl.num_programs(1).to(tl.int64) * C, along * rstd, mask=known)


def inner_gradient(
    dy: Tensor,
    mask: Tensor,
    source: Source,
    filters: Tensor,
    constant: Tensor,
    diagonal: Tensor | None,
    unscale: Tensor | None,
    *,
    statistics: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of a source.

    Args:
        dy: [N, C_out, H_out, W_out], channels_last: the gradient of the block's result.
        mask: [N, C_out / 8, H_out, W_out]: which values its ReLU let pass.
        source: of C channels; where it has a line, the gradient is that of the BatchNorm's result.
        filters: [C_out + C, C] in the dtype of x, see `kernels.gram.backward`.
        constant: [C].
        diagonal: [C], of H, where the source has a line.
        unscale: [2], what the two products have to be multiplied by, powers of two; None: one.
        statistics: [2, C], of the source's BatchNorm.
        eps: of the source's BatchNorm.

    Returns:
        dx [N, C, H_out, W_out], channels_last (of a source at a stride: of the pixels that it takes); and where the
        source has a line the parts [2, runs, C] of sum g and of sum g x_hat.
    """
    x, pixels = source.x, source.pixels
    columns, channels = int(dy.shape[1]), int(x.shape[1])
    plan = product_launch("inner gradient", pixels.rows, channels, columns, x.dtype)
    dx = empty_laid_out_like(x, (dy.shape[0], channels, *dy.shape[2:]), x.dtype)
    sums = None if source.line is None else constant.new_empty((2, plan.runs, channels))
    launch_kernel(
        _inner_gradient, plan.grid,
        dx, sums, dy, mask, x, source.line, source.centre, statistics, filters, constant, diagonal, unscale,
        pixels.rows, columns, channels, *pixels.geometry, plan.rows_per_run,
        EPS=eps, STRIDE=source.stride, PRECISION=product_precision(x.dtype),
        BLOCK_ROWS=plan.block_rows, BLOCK_COLUMNS=plan.block_columns, BLOCK_INNER=plan.block_inner,
        num_warps=plan.num_warps, num_stages=plan.num_stages, chosen_for=plan.product,
        budget=lambda: Budget(
            read=dy.nbytes + mask.nbytes + pixels.rows * channels * x.itemsize + filters.nbytes,
            written=dx.nbytes + (0 if sums is None else sums.nbytes),
            flops=2 * pixels.rows * (columns + channels) * channels,
        ),
    )  # fmt: skip
    return dx, sums
