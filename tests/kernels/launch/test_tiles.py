"""Where elements lie, also beyond 2^31 of them: offsets that kernels compute, beside Python's unbounded integers."""

import pytest
import torch
import triton
import triton.language as tl

from kernels.launch.tiles import pixel_offsets, tile_offsets

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, CHANNELS = 16, 8  # of a tile
STEM = (64, 112 * 112)  # channels, pixels
LATE = (2048, 7 * 7)
LIMIT = 2**31
LAYOUTS = ("channels_last", "NCHW, 16", "NCHW")


@triton.jit
def _store_offsets(
    tile_ptr,  # [R, B] int64, written: of rows
    pixel_ptr,  # [R, B] int64, written: of the same rows as pixels of images
    first_ptr,  # [] int64
    C, HW,
    LAYOUT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    first = tl.load(first_ptr)
    rows = tl.arange(0, ROWS)
    channels = tl.arange(0, CHANNELS)
    at = rows[:, None] * CHANNELS + channels[None, :]
    tl.store(tile_ptr + at, tile_offsets(first, rows, channels, C, HW, LAYOUT))
    image = (first + rows) // HW
    pixel = ((first + rows) % HW).to(tl.int32)
    tl.store(pixel_ptr + at, pixel_offsets(image, pixel, channels, C, HW, LAYOUT))


def expected(row: int, channel: int, channels: int, pixels: int, layout: str) -> int:
    image, pixel = divmod(row, pixels)
    if layout == "channels_last":
        return row * channels + channel
    return image * channels * pixels + channel * pixels + pixel


CASES = {
    "first": (STEM, 0),
    "two images": (STEM, 112 * 112 - ROWS // 2),
    "last of N = 512": (STEM, 512 * 112 * 112 - ROWS),
    "across 2^31 elements": (STEM, LIMIT // 64 - ROWS // 2),
    "across 2^32 elements": (STEM, 2 * LIMIT // 64 - ROWS // 2),
    "across 2^31 elements of many channels": (LATE, LIMIT // 2048 - ROWS // 2),
    "far beyond 2^31 elements": (LATE, 5 * LIMIT // 2048 + 3),
    "across 2^31 rows": ((3, 112 * 112), LIMIT - ROWS // 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_offsets_are_right_beyond_32_bits(case: str, layout: str) -> None:
    (channels, pixels), first = CASES[case]
    if layout == "NCHW, 16":  # what it promises the compiler
        pixels, first = pixels + -pixels % 16, first - first % 16
    tiles, images = (torch.empty((ROWS, CHANNELS), dtype=torch.int64, device=DEVICE) for _ in range(2))
    start = torch.tensor(first, dtype=torch.int64, device=DEVICE)
    _store_offsets[(1,)](tiles, images, start, channels, pixels, LAYOUT=layout, ROWS=ROWS, CHANNELS=CHANNELS)
    wanted = [[expected(first + row, at, channels, pixels, layout) for at in range(CHANNELS)] for row in range(ROWS)]
    assert tiles.tolist() == wanted
    assert images.tolist() == wanted
