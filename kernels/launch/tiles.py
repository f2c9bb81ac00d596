"""Device functions on tiles [R, B] of rows by channels: offsets in memory, and bit packing.

A tensor [N, C, H, W] is a matrix of N * H * W rows by C channels. LAYOUT is "channels_last", where memory holds that
matrix row by row; "NCHW"; or "NCHW, 16", where images have a multiple of 16 pixels, so that 16 rows of a tile are
contiguous: the compiler, which cannot infer it through the divisions, is told. Offsets are int64 wherever they may
reach 2^31 elements.
"""

import triton
import triton.language as tl


@triton.jit
def tile_offsets(first, rows, channels, C, HW, LAYOUT: tl.constexpr):
    """Return the offsets [R, B] of rows `first + rows` (first an int64 scalar, rows [R] int32) and channels [B]."""
    if LAYOUT == "channels_last":
        offsets = first * C + (rows[:, None] * C + channels[None, :])
    else:
        within = (first % HW).to(tl.int32) + rows
        pixels = (first // HW + within // HW) * C * HW + within % HW
        if LAYOUT == "NCHW, 16":
            pixels = tl.max_contiguous(tl.multiple_of(pixels, 16), 16)
        offsets = pixels[:, None] + channels.to(tl.int64)[None, :] * HW
    return offsets


@triton.jit
def pixel_offsets(image, pixel, channels, C, HW, LAYOUT: tl.constexpr):
    """Return the offsets [R, B] of pixels [R] (h * W + w) of images [R] (int64) and channels [B]."""
    if LAYOUT == "channels_last":
        offsets = ((image * HW + pixel) * C)[:, None] + channels[None, :]
    else:
        offsets = (image * C * HW + pixel)[:, None] + channels.to(tl.int64)[None, :] * HW
    return offsets


@triton.jit
def pack_bits(flags, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """Pack flags [R, B] of 0 and 1 into bytes [R, B / 8], the lowest channel in the lowest bit."""
    bits = tl.reshape(flags.to(tl.int32), [BLOCK_ROWS, BLOCK_CHANNELS // 8, 8])
    return tl.sum(bits << tl.arange(0, 8)[None, None, :], axis=2).to(tl.uint8)


@triton.jit
def unpack_bits(packed, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """Unpack bytes [R, B / 8] into flags [R, B] of 0 and 1."""
    bits = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, [BLOCK_ROWS, BLOCK_CHANNELS])
