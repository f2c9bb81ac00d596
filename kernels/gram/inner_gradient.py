"""The gradient of the input of a 1x1 convolution and its BatchNorm, without the convolution's result.

    dy2 = D (scale W) - (y - centre) H + h        products of rows [N] and [C] by filters [N + C, C]

D is dout masked by the block's ReLU, computed from dout and the saved mask when a tile is loaded; H and h are the two
terms of BatchNorm's gradient with sums, multiplied through the convolution (`kernels.gram.backward`). If y =
relu(bn(x)), the diagonal of H is applied to each value separately, the result is masked by that ReLU, and the two sums
are taken that the backward pass of that BatchNorm needs (in parts, merged by `kernels.batch_norm.backward`).

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
    diagonal_ptr,  # [C]: that of H, which is zero in the filters; None without a line
    unscale_ptr,  # [2] or None: the factors of the two products
    rows, N, C, pixels, width, source_pixels, source_width, rows_per_run,
    EPS: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    acc = constant_ptr.dtype.element_ty
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    valid = columns < C
    if line_ptr is not None:
        total = tl.zeros([BLOCK_COLUMNS], dtype=acc)
        along = tl.zeros([BLOCK_COLUMNS], dtype=acc)
    first = tl.program_id(1).to(tl.int64) * rows_per_run
    last = tl.minimum(first + rows_per_run, rows)
    for start in range(first, last, BLOCK_ROWS):
        tile_rows = start + tl.arange(0, BLOCK_ROWS)
        inside_rows = tile_rows < last
        inside = inside_rows[:, None] & valid[None, :]
        source = source_rows(tile_rows, pixels, width, source_pixels, source_width, STRIDE)
        product = masked_product(
            tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype=acc), dy_ptr, mask_ptr, tile_rows, inside_rows,
            filters_ptr, columns, N, C, PRECISION, BLOCK_ROWS, BLOCK_INNER,
        )  # fmt: skip
        if unscale_ptr is not None:
            product *= tl.load(unscale_ptr) / tl.load(unscale_ptr + 1)
        product = activation_product(
            product, x_ptr, line_ptr, centre_ptr, source, inside_rows,
            filters_ptr + N * C, columns, C, C, False, PRECISION, BLOCK_INNER,
        )  # fmt: skip
        if unscale_ptr is not None:
            product *= tl.load(unscale_ptr + 1)
        g = product + tl.load(constant_ptr + columns, mask=valid, other=0.0)[None, :]
        if line_ptr is not None:
            x = tl.load(x_ptr + (source * C)[:, None] + columns[None, :], mask=inside, other=0.0)
            y = on_line(x.to(acc), line_ptr, columns, C).to(x.dtype)
            mean = tl.load(line_ptr + columns, mask=valid, other=0.0)
            centre = tl.load(centre_ptr + columns, mask=valid, other=0.0)
            diagonal = tl.load(diagonal_ptr + columns, mask=valid, other=0.0)
            g -= (y.to(acc) - centre[None, :]) * diagonal[None, :]
            g = tl.where(inside & kept(y), g, 0.0).to(dx_ptr.dtype.element_ty)
            total += tl.sum(g.to(acc), axis=0)
            along += tl.sum(g.to(acc) * (x.to(acc) - mean[None, :]), axis=0)
        tl.store(dx_ptr + (tile_rows * C)[:, None] + columns[None, :], g.to(dx_ptr.dtype.element_ty), mask=inside)
    if line_ptr is not None:
        _, rstd, _ = saved_statistics(statistics_ptr, None, columns, C, EPS)
        run = sums_ptr + tl.program_id(1).to(tl.int64) * C + columns
        tl.store(run, total, mask=valid)
        tl.store(run + tl.num_programs(1).to(tl.int64) * C, along * rstd, mask=valid)


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
    """Compute the gradient of a source.

    Args:
        dy: [N, C_out, H_out, W_out], channels_last: the gradient of the block's result.
        mask: [N, C_out / 8, H_out, W_out]: the values that its ReLU passed.
        source: of C channels; if it has a line, the gradient is that of the BatchNorm's result.
        filters: [C_out + C, C] in the dtype of x, see `kernels.gram.backward`.
        constant: [C].
        diagonal: [C], of H, if the source has a line.
        unscale: [2], the factors of the two products, powers of two; None: 1.
        statistics: [2, C], of the source's BatchNorm.
        eps: of the source's BatchNorm.

    Returns:
        dx [N, C, H_out, W_out], channels_last (for a strided source: of the pixels that it takes); and if the source
        has a line the parts [2, runs, C] of sum g and of sum g x_hat.
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
