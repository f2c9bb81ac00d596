"""The gradient of a block's input: that of its first 1x1 convolution and that of its shortcut, in one product.

    dx = dx1 W + D            D = dout masked by the block's ReLU, computed when a tile is loaded
    dx = dx1 W + dz           dz of a projected shortcut, at the rows that its stride takes, zero elsewhere

Moves: R dx1, R filters, R dout and mask or R dz, W dx. Work: 2 * rows * K * C.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch.layout import empty_laid_out_like
from kernels.launch.runtime import Budget, launch_kernel
from kernels.products.operands import Pixels, activation_product, masked_tile, spread_rows
from kernels.products.plans import product_launch, product_precision


@triton.jit
def _input_gradient(
    dx_ptr,  # [rows, N], written
    dy_ptr,  # [output rows, K]
    filters_ptr,  # [K, N]
    skip_ptr,  # [rows, N] with a mask, else [output rows, N]
    mask_ptr,  # [rows, N / 8] or None
    rows, N, K, pixels, width, source_pixels, source_width, rows_per_run,
    STRIDE: tl.constexpr, SKIP_STRIDE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    first_column = tl.program_id(0) * BLOCK_COLUMNS
    columns = first_column + tl.arange(0, BLOCK_COLUMNS)
    valid = columns < N
    first = tl.program_id(1).to(tl.int64) * rows_per_run
    last = tl.minimum(first + rows_per_run, rows)
    for start in range(first, last, BLOCK_ROWS):
        tile_rows = start + tl.arange(0, BLOCK_ROWS)
        inside_rows = tile_rows < last
        output, taken = spread_rows(tile_rows, pixels, width, source_pixels, source_width, STRIDE)
        dx = activation_product(
            tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype=ACC), dy_ptr, None, None, output, inside_rows & taken,
            filters_ptr, columns, K, N, False, PRECISION, BLOCK_INNER,
        )  # fmt: skip
        output, taken = spread_rows(tile_rows, pixels, width, source_pixels, source_width, SKIP_STRIDE)
        skip = masked_tile(skip_ptr, mask_ptr, output, inside_rows & taken, first_column, N, BLOCK_ROWS, BLOCK_COLUMNS)
        dx += skip.to(ACC)
        offsets = (tile_rows * N)[:, None] + columns[None, :]
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside_rows[:, None] & valid[None, :])


def input_gradient(
    dy: Tensor, filters: Tensor, x: Tensor, stride: int, skip: Tensor, mask: Tensor | None, skip_stride: int = 1
) -> Tensor:
    """Compute dx, like x [N, C, H, W], channels_last.

    Args:
        dy: [N, K, H_out, W_out], channels_last: the gradient of conv1x1(x).
        filters: [K, C, 1, 1] in the dtype of x, contiguous.
        x: gives shape and dtype; its values are ignored.
        stride: of the convolution.
        skip: with a mask, the gradient of the block's result, like x; without, [N, C, H_skip, W_skip], the gradient of
            the pixels that the shortcut takes.
        mask: [N, C / 8, H, W]: the values that the block's ReLU passed.
        skip_stride: of the shortcut. One of the two strides is 1, or they are equal.
    """
    channels, inner = int(x.shape[1]), int(dy.shape[1])
    rows = x.numel() // channels
    plan = product_launch("input gradient", rows, channels, inner, x.dtype)
    dx = empty_laid_out_like(x, (x.shape[0], channels, *x.shape[2:]), x.dtype)
    launch_kernel(
        _input_gradient, plan.grid,
        dx, dy, filters, skip, mask,
        rows, channels, inner, *Pixels.of(x, max(stride, skip_stride)).geometry, plan.rows_per_run,
        STRIDE=stride, SKIP_STRIDE=skip_stride, PRECISION=product_precision(x.dtype),
        ACC=tl.float64 if x.dtype == torch.float64 else tl.float32,
        BLOCK_ROWS=plan.block_rows, BLOCK_COLUMNS=plan.block_columns, BLOCK_INNER=plan.block_inner,
        num_warps=plan.num_warps, num_stages=plan.num_stages, chosen_for=plan.product,
        budget=lambda: Budget(
            read=dy.nbytes + filters.nbytes + skip.nbytes + (0 if mask is None else mask.nbytes),
            written=dx.nbytes,
            flops=2 * rows * channels * inner,
        ),
    )  # fmt: skip
    return dx
