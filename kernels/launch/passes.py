"""How the tiles and programs of a pass over a tensor are laid out: a plain function of its shape, never a search.

A tensor is seen as a matrix of rows (N * H * W) by channels. A program takes one block of channels and a run of
consecutive rows, which it walks in tiles. The figures were set by reasoning and by the audit (no spills, 128-bit
accesses); `resbench kernels --search` measures alternatives on a GPU and prints what to write here.
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
    """What one step of a program's loop covers, how many threads do it, and how many such programs a multiprocessor."""

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
TILES_ON: dict[tuple[str, Pass], Tile] = {  # where the registers of TILES do not suffice
    ("sm_100", "apply"): Tile(kibibytes=16, num_warps=16),
}
_instead: ContextVar[dict[Pass, Tile]] = ContextVar("instead", default={})  # noqa: B039 - never changed in place
NCHW_KIBIBYTES = 16  # of a tile at most: addresses take registers,
SCATTERED_KIBIBYTES = 4  # and most where every element has one of its own
SCATTERED_ELEMENTS = 2  # of a thread at least
INTERPRETED_TILE = Tile(kibibytes=256, num_warps=1)  # each operation on a tile is a call of numpy

FEWEST_CHANNELS = 8  # of a block: the bits of a byte of a mask
MOST_CHANNELS = 256
NCHW_CHANNELS = 8  # of a block where the rows are what is contiguous
MERGED = 136  # KiB: every program of a second pass reads the partial sums that all programs of the first have left


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
    """The launch of one pass over a tensor that is not empty."""
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
    """Inside, passes of this kind have another tile than that of the tables: to search for a better one."""
    token = _instead.set({**_instead.get(), kind: tile})
    try:
        yield
    finally:
        _instead.reset(token)


def _tile(kind: Pass, matrix: Matrix, machine: str) -> Tile:
    if machine == "interpreter":
        return INTERPRETED_TILE
    tile = _instead.get().get(kind) or TILES_ON.get((machine, kind), TILES[kind])
    if _scattered(kind, matrix):
        return replace(tile, kibibytes=SCATTERED_KIBIBYTES)
    return tile if matrix.channels_last else replace(tile, kibibytes=min(tile.kibibytes, NCHW_KIBIBYTES))


def _scattered(kind: Pass, matrix: Matrix) -> bool:
    """Whether a thread's elements are apart in memory: every access is narrow, and has an address of its own.

    So they are in channels_last too where the compiler does not know the channels to be a multiple of 16.
    """
    if matrix.channels_last:
        return matrix.channels % 16 != 0
    return matrix.layout == "NCHW" or "pool" in kind


def _block_channels(channels: int, programs: int) -> int:
    """As many as make long contiguous accesses, but so few that merging the partial sums stays cheap.

    A program of the second pass reads 8 bytes for each of its channels from each of `programs * block / channels` runs.
    """
    block: int = min(MOST_CHANNELS, max(FEWEST_CHANNELS, triton.next_power_of_2(channels)))
    while block > FEWEST_CHANNELS and programs * block**2 * 8 > MERGED * 1024 * channels:
        block //= 2
    return block
