"""What kernels that multiply matrices share: how operands are made on their way in, and how a product is laid out.

A 1x1 convolution in channels_last is a product of rows [M, K] (one a pixel) by filters. An operand is read once and
made into what is multiplied in registers: normalised and rectified (*line*), centred, masked, rows skipped by a stride.
Everything is accumulated in fp32 (fp64 for fp64); an operand is rounded to its dtype before it is multiplied, as it
would be had it been stored.

`product_launch` and `row_product_launch` choose tiles (of `kernels.products.tiles`) and programs: plain functions of
the shape, the dtype and the architecture.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from kernels.batch_norm.normalise import kept, normalised
from kernels.launch.tiles import unpack_bits


@triton.jit
def source_rows(rows, pixels, width, source_pixels, source_width, STRIDE: tl.constexpr):
    """The rows [R] (int64) of its input that rows [R] of the output of a 1x1 convolution are made of."""
    source = rows
    if STRIDE > 1:
        within = rows % pixels
        source = rows // pixels * source_pixels + within // width * STRIDE * source_width + within % width * STRIDE
    return source


@triton.jit
def spread_rows(rows, pixels, width, source_pixels, source_width, STRIDE: tl.constexpr):
    """The other way round: the rows [R] of the output that rows [R] of the input are part of, and which are of any."""
    output = rows
    part = rows >= 0
    if STRIDE > 1:
        within = rows % source_pixels
        h = within // source_width
        w = within % source_width
        part = (h % STRIDE == 0) & (w % STRIDE == 0)
        output = rows // source_pixels * pixels + h // STRIDE * width + w // STRIDE
    return output, part


@triton.jit
def on_line(x, line_ptr, channels, C):
    """BatchNorm of a tile [R, B] by a line [3, C] of mean, scale and shift. Loaded where used: else a register each."""
    known = channels < C
    mean = tl.load(line_ptr + channels, mask=known, other=0.0)
    scale = tl.load(line_ptr + C + channels, mask=known, other=0.0)
    shift = tl.load(line_ptr + 2 * C + channels, mask=known, other=0.0)
    return normalised(x, mean, scale, shift)


@triton.jit
def activation_tile(x_ptr, line_ptr, centre_ptr, rows, inside, channels, C):
    """A tile [R, B] of x [rows, C], relu(bn(x)) where there is a line [3, C], less the centre [C] where there is one.

    Zero outside. Each step is rounded to the dtype of x: what is centred is what would have been stored.
    """
    known = channels < C
    here = inside[:, None] & known[None, :]
    x = tl.load(x_ptr + (rows * C)[:, None] + channels[None, :], mask=here, other=0.0)
    if line_ptr is not None:
        y = on_line(x.to(line_ptr.dtype.element_ty), line_ptr, channels, C).to(x.dtype)
        x = tl.where(kept(y), y, 0.0)
    if centre_ptr is not None:
        centre = tl.load(centre_ptr + channels, mask=known, other=0.0)
        x = (x.to(centre.dtype) - centre[None, :]).to(x.dtype)
    if line_ptr is not None or centre_ptr is not None:
        x = tl.where(here, x, 0.0)
    return x


@triton.jit
def masked_tile(dy_ptr, mask_ptr, rows, inside, first, C, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """A tile [R, B] of dy [rows, C] from channel `first` on, zero where the ReLU that kept mask [rows, C / 8] was."""
    channels = first + tl.arange(0, BLOCK_CHANNELS)
    here = inside[:, None] & (channels < C)[None, :]
    dy = tl.load(dy_ptr + (rows * C)[:, None] + channels[None, :], mask=here, other=0.0)
    if mask_ptr is not None:
        packed = first // 8 + tl.arange(0, BLOCK_CHANNELS // 8)
        of_row = tl.cdiv(C, 8)
        bytes_here = inside[:, None] & (packed < of_row)[None, :]
        bits = tl.load(mask_ptr + (rows * of_row)[:, None] + packed[None, :], mask=bytes_here, other=0)
        dy = tl.where(unpack_bits(bits, BLOCK_ROWS, BLOCK_CHANNELS) != 0, dy, 0.0)
    return dy


@triton.jit
def filters_tile(filters_ptr, channels, columns, K, N, TRANSPOSED: tl.constexpr):
    """A tile [B, C] of filters: of a convolution's [N, K] (transposed), or of a matrix [K, N]."""
    here = (channels < K)[:, None] & (columns < N)[None, :]
    offsets = channels[:, None] * N + columns[None, :]
    if TRANSPOSED:
        offsets = channels[:, None] + columns[None, :] * K
    return tl.load(filters_ptr + offsets, mask=here, other=0.0)


@triton.jit
def activation_product(
    acc, x_ptr, line_ptr, centre_ptr, rows, inside, filters_ptr, columns, K, N,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc [R, C] + activations [rows, K] @ filters."""
    for start in range(0, K, BLOCK_K):
        channels = start + tl.arange(0, BLOCK_K)
        x = activation_tile(x_ptr, line_ptr, centre_ptr, rows, inside, channels, K)
        filters = filters_tile(filters_ptr, channels, columns, K, N, TRANSPOSED)
        acc = tl.dot(x, filters, acc, input_precision=PRECISION)
    return acc


@triton.jit
def masked_product(
    acc, dy_ptr, mask_ptr, rows, inside, filters_ptr, columns, K, N,
    PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc [R, C] + masked dy [rows, K] @ filters [K, N]."""
    for start in range(0, K, BLOCK_K):
        dy = masked_tile(dy_ptr, mask_ptr, rows, inside, start, K, BLOCK_ROWS, BLOCK_K)
        filters = filters_tile(filters_ptr, start + tl.arange(0, BLOCK_K), columns, K, N, False)
        acc = tl.dot(dy, filters, acc, input_precision=PRECISION)
    return acc


@triton.jit
def merged(parts_ptr, at, known, size, splits, MERGED: tl.constexpr):
    """The sum [B] over splits of parts [splits, size] at places [B], always in the same order."""
    total = tl.zeros([MERGED, at.shape[0]], dtype=parts_ptr.dtype.element_ty)
    for start in range(0, splits, MERGED):
        split = start + tl.arange(0, MERGED)
        inside = (split < splits)[:, None] & known[None, :]
        places = split.to(tl.int64)[:, None] * size + at[None, :]
        total += tl.load(parts_ptr + places, mask=inside, other=0.0)
    return tl.sum(total, axis=0)


class Pixels(NamedTuple):
    """Which rows of its input a 1x1 convolution takes: all, or of every image each stride-th of each stride-th line."""

    rows: int  # of the output, N * H_out * W_out
    pixels: int  # H_out * W_out
    width: int  # W_out
    source_pixels: int  # H * W
    source_width: int  # W
    stride: int

    @classmethod
    def of(cls, x: Tensor, stride: int = 1) -> "Pixels":
        """Of a 1x1 convolution of x [N, C, H, W]."""
        n, _, height, width = map(int, x.shape)
        out_height, out_width = -(-height // stride), -(-width // stride)
        return cls(n * out_height * out_width, out_height * out_width, out_width, height * width, width, stride)

    @property
    def geometry(self) -> tuple[int, int, int, int]:
        """What `source_rows` and `spread_rows` ask for besides the stride; nothing at 1: else a compilation a shape."""
        return (self.pixels, self.width, self.source_pixels, self.source_width) if self.stride > 1 else (0, 0, 0, 0)
