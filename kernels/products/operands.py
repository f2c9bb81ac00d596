"""Device functions shared by kernels that multiply matrices: they load operands, and multiply them.

A 1x1 convolution in channels_last is a product of rows [M, K] (one per pixel) by filters. An operand is read once and
transformed in registers before it is multiplied: normalised and rectified (by a *line*), centred, masked, rows skipped
by a stride. Everything is accumulated in fp32 (fp64 for fp64); an operand is rounded to its dtype before it is
multiplied, as if it had been stored.

`kernels.products.plans` chooses tiles and programs.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from kernels.batch_norm.normalise import kept, normalised
from kernels.launch.tiles import unpack_bits


@triton.jit
def source_rows(rows, pixels, width, source_pixels, source_width, STRIDE: tl.constexpr):
    """Return the input rows [R] (int64) that output rows [R] of a 1x1 convolution are computed from."""
    source = rows
    if STRIDE > 1:
        within = rows % pixels
        source = rows // pixels * source_pixels + within // width * STRIDE * source_width + within % width * STRIDE
    return source


@triton.jit
def spread_rows(rows, pixels, width, source_pixels, source_width, STRIDE: tl.constexpr):
    """Return the output rows [R] that are computed from input rows [R], and which input rows are taken at all."""
    output = rows
    taken = rows >= 0
    if STRIDE > 1:
        within = rows % source_pixels
        h = within // source_width
        w = within % source_width
        taken = (h % STRIDE == 0) & (w % STRIDE == 0)
        output = rows // source_pixels * pixels + h // STRIDE * width + w // STRIDE
    return output, taken


@triton.jit
def on_line(x, line_ptr, channels, C):
    """Normalise a tile [R, B] by a line [3, C] of mean, scale and shift, which is loaded here to save registers."""
    valid = channels < C
    mean = tl.load(line_ptr + channels, mask=valid, other=0.0)
    scale = tl.load(line_ptr + C + channels, mask=valid, other=0.0)
    shift = tl.load(line_ptr + 2 * C + channels, mask=valid, other=0.0)
    return normalised(x, mean, scale, shift)


@triton.jit
def activation_tile(x_ptr, line_ptr, centre_ptr, rows, inside_rows, channels, C):
    """Load a tile [R, B] of x [rows, C]: relu(bn(x)) if there is a line [3, C], less the centre [C] if there is one.

    Zero outside. Each step is rounded to the dtype of x, as if its result had been stored.
    """
    valid = channels < C
    inside = inside_rows[:, None] & valid[None, :]
    x = tl.load(x_ptr + (rows * C)[:, None] + channels[None, :], mask=inside, other=0.0)
    if line_ptr is not None:
        y = on_line(x.to(line_ptr.dtype.element_ty), line_ptr, channels, C).to(x.dtype)
        x = tl.where(kept(y), y, 0.0)
    if centre_ptr is not None:
        centre = tl.load(centre_ptr + channels, mask=valid, other=0.0)
        x = (x.to(centre.dtype) - centre[None, :]).to(x.dtype)
    if line_ptr is not None or centre_ptr is not None:
        x = tl.where(inside, x, 0.0)
    return x


@triton.jit
def masked_tile(dy_ptr, mask_ptr, rows, inside_rows, first, C, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """Load a tile [R, B] of dy [rows, C] from channel `first` on, zero where the bits of mask [rows, C / 8] are 0."""
    channels = first + tl.arange(0, BLOCK_CHANNELS)
    inside = inside_rows[:, None] & (channels < C)[None, :]
    dy = tl.load(dy_ptr + (rows * C)[:, None] + channels[None, :], mask=inside, other=0.0)
    if mask_ptr is not None:
        packed = first // 8 + tl.arange(0, BLOCK_CHANNELS // 8)
        row_bytes = tl.cdiv(C, 8)
        valid_bytes = inside_rows[:, None] & (packed < row_bytes)[None, :]
        bits = tl.load(mask_ptr + (rows * row_bytes)[:, None] + packed[None, :], mask=valid_bytes, other=0)
        dy = tl.where(unpack_bits(bits, BLOCK_ROWS, BLOCK_CHANNELS) != 0, dy, 0.0)
    return dy


@triton.jit
def filters_tile(filters_ptr, channels, columns, K, N, TRANSPOSED: tl.constexpr):
    """Load a tile [B, C] of filters: of those of a convolution [N, K] (transposed), or of a matrix [K, N]."""
    inside = (channels < K)[:, None] & (columns < N)[None, :]
    offsets = channels[:, None] * N + columns[None, :]
    if TRANSPOSED:
        offsets = channels[:, None] + columns[None, :] * K
    return tl.load(filters_ptr + offsets, mask=inside, other=0.0)


@triton.jit
def activation_product(
    acc, x_ptr, line_ptr, centre_ptr, rows, inside_rows, filters_ptr, columns, K, N,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return acc [R, C] + activations [rows, K] @ filters."""
    for start in range(0, K, BLOCK_K):
        channels = start + tl.arange(0, BLOCK_K)
        x = activation_tile(x_ptr, line_ptr, centre_ptr, rows, inside_rows, channels, K)
        filters = filters_tile(filters_ptr, channels, columns, K, N, TRANSPOSED)
        acc = tl.dot(x, filters, acc, input_precision=PRECISION)
    return acc


@triton.jit
def masked_product(
    acc, dy_ptr, mask_ptr, rows, inside_rows, filters_ptr, columns, K, N,
    PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return acc [R, C] + masked dy [rows, K] @ filters [K, N]."""
    for start in range(0, K, BLOCK_K):
        dy = masked_tile(dy_ptr, mask_ptr, rows, inside_rows, start, K, BLOCK_ROWS, BLOCK_K)
        filters = filters_tile(filters_ptr, start + tl.arange(0, BLOCK_K), columns, K, N, False)
        acc = tl.dot(dy, filters, acc, input_precision=PRECISION)
    return acc


@triton.jit
def merged(parts_ptr, indices, valid, size, splits, MERGED: tl.constexpr):
    """Sum parts [splits, size] over the splits, always in the same order, at indices [B]."""
    total = tl.zeros([MERGED, indices.shape[0]], dtype=parts_ptr.dtype.element_ty)
    for start in range(0, splits, MERGED):
        split = start + tl.arange(0, MERGED)
        inside = (split < splits)[:, None] & valid[None, :]
        offsets = split.to(tl.int64)[:, None] * size + indices[None, :]
        total += tl.load(parts_ptr + offsets, mask=inside, other=0.0)
    return tl.sum(total, axis=0)


class Pixels(NamedTuple):
    """The input rows that a 1x1 convolution takes: all, or every stride-th pixel of every stride-th row of an image."""

    rows: int  # of the output, N * H_out * W_out
    pixels: int  # H_out * W_out
    width: int  # W_out
    source_pixels: int  # H * W
    source_width: int  # W
    stride: int

    @classmethod
    def of(cls, x: Tensor, stride: int = 1) -> "Pixels":
        """Return those of a 1x1 convolution of x [N, C, H, W]."""
        n, _, height, width = map(int, x.shape)
        out_height, out_width = -(-height // stride), -(-width // stride)
        return cls(n * out_height * out_width, out_height * out_width, out_width, height * width, width, stride)

    @property
    def geometry(self) -> tuple[int, int, int, int]:
        """Arguments of `source_rows` and `spread_rows`; zeros at stride 1, lest kernels be compiled for each shape."""
        return (self.pixels, self.width, self.source_pixels, self.source_width) if self.stride > 1 else (0, 0, 0, 0)
