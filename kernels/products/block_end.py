"""The end of a residual block in one product: its last 1x1 convolution, BatchNorm, shortcut and ReLU.

    out = relu(bn(conv1x1(y)) + shortcut)
    out = relu(bn(conv1x1(y)) + bn_z(conv1x1(z)))        if the shortcut is projected

y and z are `kernels.gram.covariance` sources: y = relu(bn(x)) is computed when x is loaded, z is taken at a stride.
Mean and variance of the convolution's result are known beforehand (`kernels.gram.statistics`, or running statistics),
so that the result itself, the widest tensor of a block, is never written; nor is the projected shortcut.

Moves: R x of each source (its strided rows), R filters, R shortcut, W out, W mask (one bit per element, in training).
Work: 2 * rows * N * (K of every source).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.batch_norm.normalise import kept
from kernels.launch.layout import empty_laid_out_like
from kernels.launch.runtime import Budget, launch_kernel
from kernels.launch.tiles import pack_bits
from kernels.products.operands import Pixels, activation_product, on_line, source_rows
from kernels.products.plans import product_launch, product_precision


@triton.jit
def _block_end(
    out_ptr,  # [rows, N], written
    mask_ptr,  # [rows, N / 8] bits, written; or None
    x_ptr,  # [rows, K]
    line_ptr,  # [3, K] or None: x is taken as it is
    filters_ptr,  # [N, K]
    result_line_ptr,  # [3, N] of the convolution's result
    shortcut_ptr,  # [rows, N] or None
    z_ptr,  # [source rows, L] or None
    z_filters_ptr,  # [N, L]
    z_result_line_ptr,  # [3, N]
    rows, N, K, L, pixels, width, source_pixels, source_width, rows_per_run,
    RELU: tl.constexpr, STRIDE: tl.constexpr, Z_STRIDE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    acc = result_line_ptr.dtype.element_ty
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    valid = columns < N
    first = tl.program_id(1).to(tl.int64) * rows_per_run
    last = tl.minimum(first + rows_per_run, rows)
    for start in range(first, last, BLOCK_ROWS):
        tile_rows = start + tl.arange(0, BLOCK_ROWS)
        inside_rows = tile_rows < last
        inside = inside_rows[:, None] & valid[None, :]
        offsets = (tile_rows * N)[:, None] + columns[None, :]
        zeros = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype=acc)
        if z_ptr is not None:
            source = source_rows(tile_rows, pixels, width, source_pixels, source_width, Z_STRIDE)
            z = activation_product(
                zeros,
                z_ptr,
                None,
                None,
                source,
                inside_rows,
                z_filters_ptr,
                columns,
                L,
                N,
                True,
                PRECISION,
                BLOCK_INNER,
            )
            z = on_line(z, z_result_line_ptr, columns, N)
        source = source_rows(tile_rows, pixels, width, source_pixels, source_width, STRIDE)
        y = activation_product(
            zeros, x_ptr, line_ptr, None, source, inside_rows, filters_ptr, columns, K, N, True, PRECISION, BLOCK_INNER
        )
        y = on_line(y, result_line_ptr, columns, N)
        if z_ptr is not None:
            y += z
        if shortcut_ptr is not None:
            y += tl.load(shortcut_ptr + offsets, mask=inside, other=0.0).to(acc)
        out = y.to(out_ptr.dtype.element_ty)
        if RELU:
            active = kept(out)
            out = tl.where(active, out, 0.0)
            if mask_ptr is not None:
                packed = tl.program_id(0) * (BLOCK_COLUMNS // 8) + tl.arange(0, BLOCK_COLUMNS // 8)
                row_bytes = tl.cdiv(N, 8)
                valid_bytes = inside_rows[:, None] & (packed < row_bytes)[None, :]
                bits = pack_bits(active, BLOCK_ROWS, BLOCK_COLUMNS)
                tl.store(mask_ptr + (tile_rows * row_bytes)[:, None] + packed[None, :], bits, mask=valid_bytes)
        tl.store(out_ptr + offsets, out, mask=inside)


class Branch(NamedTuple):
    """One summand: the BatchNorm of a 1x1 convolution of y, which is relu(bn(x)) or x."""

    x: Tensor  # [N, K, H, W], channels_last
    stride: int
    line: Tensor | None  # [3, K]: mean, scale and shift; None: y is x
    filters: Tensor  # [N, K, 1, 1] in the dtype of x, contiguous
    result_line: Tensor  # [3, N]: mean, scale and shift that the result is normalised by


def block_end(
    branch: Branch, z: Branch | None, shortcut: Tensor | None, *, relu: bool = True, with_mask: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Compute relu(branch + z + shortcut); z and shortcut are optional.

    Args:
        branch: the last convolution of the block, or in inference any 1x1 convolution with its BatchNorm.
        z: the projected shortcut; its line is ignored.
        shortcut: like the result, added as it is.
        relu: apply a ReLU at the end.
        with_mask: write a mask of the values that the ReLU passes.

    Returns:
        out [N, C_out, H_out, W_out], channels_last, and the mask [N, C_out / 8, H_out, W_out] or None.
    """
    x = branch.x
    n, inner, height, width = map(int, x.shape)
    columns = int(branch.filters.shape[0])
    pixels = Pixels.of(x, branch.stride)
    z_pixels = pixels if z is None else Pixels.of(z.x, z.stride)
    z_inner = 0 if z is None else int(z.x.shape[1])
    plan = product_launch("block end" if z is None else "block end dual", pixels.rows, columns, inner, x.dtype)
    out_height, out_width = -(-height // branch.stride), -(-width // branch.stride)
    out = empty_laid_out_like(x, (n, columns, out_height, out_width), x.dtype)
    mask = None
    if with_mask:
        mask = empty_laid_out_like(x, (n, -(-columns // 8), out_height, out_width), torch.uint8)
    operands = [branch.filters, shortcut, None if z is None else z.filters]
    launch_kernel(
        _block_end, plan.grid,
        out, mask, x, branch.line, branch.filters, branch.result_line, shortcut,
        *((None,) * 3 if z is None else (z.x, z.filters, z.result_line)),
        pixels.rows, columns, inner, z_inner, *z_pixels.geometry, plan.rows_per_run,
        RELU=relu, STRIDE=branch.stride, Z_STRIDE=z_pixels.stride,
        PRECISION=product_precision(x.dtype),
        BLOCK_ROWS=plan.block_rows, BLOCK_COLUMNS=plan.block_columns, BLOCK_INNER=plan.block_inner,
        num_warps=plan.num_warps, num_stages=plan.num_stages, chosen_for=plan.product,
        budget=lambda: Budget(
            read=pixels.rows * (inner + z_inner) * x.itemsize
            + sum(operand.nbytes for operand in operands if operand is not None),
            written=out.nbytes + (0 if mask is None else mask.nbytes),
            flops=2 * pixels.rows * columns * (inner + z_inner),
        ),
    )  # fmt: skip
    return out, mask
