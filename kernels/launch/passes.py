"""Launch configurations of the passes over a tensor: a plain function of its shape, never a search.

A tensor is seen as a matrix of rows (N * H * W) by channels. A program takes one block of channels and a run of
consecutive rows, which it walks in tiles. The figures were set by reasoning and by the audit (no spills, 128-bit
accesses); `resbench kernels --search` measures alternatives on a GPU and prints the rows to write here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal

import triton

from kernels.launch.layout import Matrix
from kernels.launch.runtime import architecture

Pass = Literal[
    "statistics", "apply", "reduce", "gradient",
    "apply dual", "reduce dual", "gradient dual",
    "pool", "reduce pool", "gradient pool",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """The size of one step of a program's loop, the warps of the program, and the programs per multiprocessor."""

    kibibytes: int  # of one tensor, a power of two
    num_warps: int
    programs: int = 1


TILES: dict[Pass, Tile] = {
    "statistics": Tile(kibibytes=32, num_warps=16),
    "apply": Tile(kibibytes=32, num_warps=16),
    "reduce": Tile(kibibytes=16, num_warps=16),
    "gradient": Tile(kibibytes=32, num_warps=16),
    "apply dual": Tile(kibibytes=16, num_warps=16),
    "reduce dual": Tile(kibibytes=8, num_warps=8, programs=2),
    "gradient dual": Tile(kibibytes=16, num_warps=16),
    "pool": Tile(kibibytes=8, num_warps=16),
    "reduce pool": Tile(kibibytes=8, num_warps=8, programs=2),
    "gradient pool": Tile(kibibytes=8, num_warps=16),
}
TILES_ON: dict[tuple[str, Pass], Tile] = {  # where the tiles of TILES spill registers
    ("sm_100", "apply"): Tile(kibibytes=16, num_warps=16),
}
_overrides: ContextVar[dict[Pass, Tile]] = ContextVar("overrides", default={})  # noqa: B039 - never changed in place
NCHW_KIBIBYTES = 16  # the largest tile in NCHW: addresses take registers,
SCATTERED_KIBIBYTES = 4  # most of all where every element has its own address
SCATTERED_ELEMENTS = 2  # the fewest per thread in such a tile
INTERPRETED_TILE = Tile(kibibytes=256, num_warps=1)  # each operation on a tile is a numpy call

FEWEST_CHANNELS = 8  # per block: one byte of a mask has 8 bits
MOST_CHANNELS = 256
NCHW_CHANNELS = 8  # per block in NCHW, where rows are contiguous
MERGED = 136  # KiB of partial sums of the first pass that one program of the second pass reads, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One pass over a tensor [rows, channels]."""

    block_rows: int
    block_channels: int
    num_warps: int
    runs: int  # programs along the rows
    rows_per_run: int  # a multiple of block_rows
    channel_blocks: int

    @property
    def grid(self) -> tuple[int, int]:
        return (self.runs, self.channel_blocks)


def launch(kind: Pass, matrix: Matrix) -> Launch:
    """Choose the launch configuration of one pass over a non-empty tensor."""
    machine = architecture()
    tile = _tile(kind, matrix, machine.name)
    programs = machine.multiprocessors * tile.programs
    block_channels = _block_channels(matrix.channels, programs) if matrix.channels_last else NCHW_CHANNELS
    block_rows = min(
        tile.kibibytes * 1024 // matrix.dtype.itemsize // block_channels, triton.next_power_of_2(matrix.rows)
    )
    channel_blocks = triton.cdiv(matrix.channels, block_channels)
    runs = max(1, programs // channel_blocks)
    rows_per_run = triton.cdiv(triton.cdiv(matrix.rows, runs), block_rows) * block_rows
    wide = 16 // matrix.dtype.itemsize  # elements of a 128-bit access
    least = SCATTERED_ELEMENTS if _scattered(kind, matrix) else wide
    return Launch(
        block_rows=block_rows,
        block_channels=block_channels,
        num_warps=max(1, min(tile.num_warps, block_rows * block_channels // (32 * least))),
        runs=triton.cdiv(matrix.rows, rows_per_run),
        rows_per_run=rows_per_run,
        channel_blocks=channel_blocks,
    )


@contextmanager
def tile_for(kind: Pass, tile: Tile) -> Iterator[None]:
    """Override the tile of one kind of pass inside the context, to search for a better one than the tables have."""
    token = _overrides.set({**_overrides.get(), kind: tile})
    try:
        yield
    finally:
        _overrides.reset(token)


def _tile(kind: Pass, matrix: Matrix, machine: str) -> Tile:
    if machine == "interpreter":
        return INTERPRETED_TILE
    tile = _overrides.get().get(kind) or TILES_ON.get((machine, kind), TILES[kind])
    if _scattered(kind, matrix):
        return replace(tile, kibibytes=SCATTERED_KIBIBYTES)
    return tile if matrix.channels_last else replace(tile, kibibytes=min(tile.kibibytes, NCHW_KIBIBYTES))


def _scattered(kind: Pass, matrix: Matrix) -> bool:
    """Whether a thread's elements are not adjacent in memory, so that every access is narrow and has its own address.

    In channels_last that is so where the number of channels is not a multiple of 16 for the compiler to rely on.
    """
    if matrix.channels_last:
        return matrix.channels % 16 != 0
    return matrix.layout == "NCHW" or "pool" in kind


def _block_channels(channels: int, programs: int) -> int:
    """Choose enough channels for long contiguous accesses, but few enough that merging the partial sums stays cheap.

    A program of the second pass reads 8 bytes for each of its channels from each of `programs * block / channels` runs.
    """
    block: int = min(MOST_CHANNELS, max(FEWEST_CHANNELS, triton.next_power_of_2(channels)))
    while block > FEWEST_CHANNELS and programs * block**2 * 8 > MERGED * 1024 * channels:
        block //= 2
    return block
