"""The end of a block and the first 1x1 convolution of the next in one kernel: the wide tensor is not read back.

    out = relu(bn(conv1x1(y)) + shortcut)        as in `kernels.products.block_end`, projected shortcuts too
    next = relu(bn'(conv1x1'(out)))

A program owns whole rows. It holds a tile of y and computes its tile of out one block of columns at a time: each block
is rounded, written for the next block's shortcut, and multiplied at once, accumulating the tile of next in registers.
So all tensors but out must be narrow, as they are where out is largest (`chainable`), and next must take every row.

Moves: R x of each source, R filters, R shortcut, W out, W next. Work: 2 * rows * N * (K of every source + M).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.batch_norm.normalise import kept
from kernels.launch.layout import empty_laid_out_like
from kernels.launch.runtime import Budget, architecture, launch_kernel
from kernels.products.block_end import Branch
from kernels.products.operands import Pixels, activation_tile, filters_tile, on_line, source_rows
from kernels.products.plans import LEAST_BLOCK, product_launch, product_precision, scattered

MOST_CHANNELS = 128  # of y and of next
MOST_PROJECTED = 64  # of the source of a projected shortcut


@triton.jit
def _block_chain(
    out_ptr,  # [rows, N], written
    next_ptr,  # [rows, M], written
    x_ptr,  # [rows, K]
    line_ptr,  # [3, K] or None: x is taken as it is
    filters_ptr,  # [N, K]
    result_line_ptr,  # [3, N] of the convolution's result
    shortcut_ptr,  # [rows, N] or None
    z_ptr,  # [source rows, L] or None
    z_filters_ptr,  # [N, L]
    z_result_line_ptr,  # [3, N]
    next_filters_ptr,  # [M, N]
    next_line_ptr,  # [3, M] of the second convolution's result
    rows, N, K, L, M, pixels, width, source_pixels, source_width, rows_per_run,
    Z_STRIDE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    WHOLE_K: tl.constexpr, WHOLE_L: tl.constexpr, WHOLE_M: tl.constexpr,
):  # fmt: skip
    dtype = out_ptr.dtype.element_ty
    acc = result_line_ptr.dtype.element_ty
    x_channels = tl.arange(0, WHOLE_K)
    z_channels = tl.arange(0, WHOLE_L)
    next_channels = tl.arange(0, WHOLE_M)
    first = tl.program_id(1).to(tl.int64) * rows_per_run
    last = tl.minimum(first + rows_per_run, rows)
    for start in range(first, last, BLOCK_ROWS):
        tile_rows = start + tl.arange(0, BLOCK_ROWS)
        inside_rows = tile_rows < last
        y = activation_tile(x_ptr, line_ptr, None, tile_rows, inside_rows, x_channels, K)
        if z_ptr is not None:
            source = source_rows(tile_rows, pixels, width, source_pixels, source_width, Z_STRIDE)
            z = activation_tile(z_ptr, None, None, source, inside_rows, z_channels, L)
        sums = tl.zeros([BLOCK_ROWS, WHOLE_M], dtype=acc)
        for column in range(0, N, BLOCK_COLUMNS):
            columns = column + tl.arange(0, BLOCK_COLUMNS)
            inside = inside_rows[:, None] & (columns < N)[None, :]
            zeros = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype=acc)
            filters = filters_tile(filters_ptr, x_channels, columns, K, N, True)
            wide = on_line(tl.dot(y, filters, zeros, input_precision=PRECISION), result_line_ptr, columns, N)
            if z_ptr is not None:
                filters = filters_tile(z_filters_ptr, z_channels, columns, L, N, True)
                wide += on_line(tl.dot(z, filters, zeros, input_precision=PRECISION), z_result_line_ptr, columns, N)
            offsets = (tile_rows * N)[:, None] + columns[None, :]
            if shortcut_ptr is not None:
                wide += tl.load(shortcut_ptr + offsets, mask=inside, other=0.0).to(acc)
            out = wide.to(dtype)
            out = tl.where(kept(out), out, 0.0)
            tl.store(out_ptr + offsets, out, mask=inside)
            filters = filters_tile(next_filters_ptr, columns, next_channels, N, M, True)
            sums = tl.dot(out, filters, sums, input_precision=PRECISION)
        following = on_line(sums, next_line_ptr, next_channels, M).to(dtype)
        following = tl.where(kept(following), following, 0.0)
        inside = inside_rows[:, None] & (next_channels < M)[None, :]
        tl.store(next_ptr + (tile_rows * M)[:, None] + next_channels[None, :], following, mask=inside)


def block_chain(
    branch: Branch, z: Branch | None, shortcut: Tensor | None, next_filters: Tensor, next_line: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute out = relu(branch + z + shortcut), and relu(bn'(conv1x1'(out))) of the next block.

    The results are those of two calls of `kernels.products.block_end.block_end`, up to the order of sums: out is
    multiplied as stored.

    Args:
        branch: the last convolution of the block, with stride 1.
        z: as for `block_end`.
        shortcut: as for `block_end`.
        next_filters: [M, C_out, 1, 1] in the dtype of the branch, contiguous.
        next_line: [3, M]: mean, scale and shift that the second result is normalised by.

    Returns:
        out [N, C_out, H, W] and next [N, M, H, W], channels_last.
    """
    x = branch.x
    n, inner, height, width = map(int, x.shape)
    following, columns = map(int, next_filters.shape[:2])
    z_inner = 0 if z is None else int(z.x.shape[1])
    assert branch.stride == 1  # noqa: S101 - checked by the caller, as is `chainable`
    pixels = Pixels.of(x) if z is None else Pixels.of(z.x, z.stride)
    plan = product_launch("block chain", pixels.rows, columns, inner, x.dtype, whole_rows=True)
    out = empty_laid_out_like(x, (n, columns, height, width), x.dtype)
    y = empty_laid_out_like(x, (n, following, height, width), x.dtype)
    operands = [branch.filters, next_filters, shortcut, None if z is None else z.filters]
    launch_kernel(
        _block_chain, plan.grid,
        out, y, x, branch.line, branch.filters, branch.result_line, shortcut,
        *((None,) * 3 if z is None else (z.x, z.filters, z.result_line)),
        next_filters, next_line,
        pixels.rows, columns, inner, z_inner, following, *pixels.geometry, plan.rows_per_run,
        Z_STRIDE=pixels.stride, PRECISION=product_precision(x.dtype),
        BLOCK_ROWS=plan.block_rows, BLOCK_COLUMNS=plan.block_columns,
        WHOLE_K=_whole(inner), WHOLE_L=_whole(z_inner), WHOLE_M=_whole(following),
        num_warps=plan.num_warps, num_stages=plan.num_stages, chosen_for=plan.product,
        budget=lambda: Budget(
            read=pixels.rows * (inner + z_inner) * x.itemsize
            + sum(operand.nbytes for operand in operands if operand is not None),
            written=out.nbytes + y.nbytes,
            flops=2 * pixels.rows * columns * (inner + z_inner + following),
        ),
    )  # fmt: skip
    return out, y


def chainable(dtype: torch.dtype, inner: int, columns: int, following: int, projected: int) -> bool:
    """Whether registers suffice for y, out, next and the source of a projected shortcut (0: none) of so many channels.

    Only for products on tensor cores: others take more registers, and are not bound by memory.
    """
    narrow = max(inner, following) <= MOST_CHANNELS and projected <= MOST_PROJECTED
    aligned = not any(
        map(scattered, (inner, columns, following, projected))
    )  # otherwise addresses alone fill the registers
    multiplied = dtype.itemsize == 2 or product_precision(dtype) == "tf32"  # noqa: PLR2004 - bytes
    return narrow and aligned and (multiplied or architecture().name == "interpreter")


def _whole(channels: int) -> int:
    return max(LEAST_BLOCK, int(triton.next_power_of_2(channels)))
