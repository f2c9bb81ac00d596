"""The parts of a sweep: a preset's blocks, and the axes that a person gives instead of theirs. Imports no torch."""

from dataclasses import dataclass

import msgspec

from bench.types import Settings


class Block(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[sweep]]` table of a preset: the cells of its axes, models outermost, paths innermost.

    `paths` holds names of paths and selectors: `all` stands for every path that has the mode, `capable` for those of
    them that make sense on the block's device, and `-NAME` takes one out again.
    """

    models: tuple[str, ...]
    modes: tuple[str, ...]
    precisions: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    image_size: int | None = None  # height in pixels; None: each model's own
    paths: tuple[str, ...] = ("all",)
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The axes that a person gives instead of a preset's; None leaves an axis as the preset has it."""

    models: tuple[str, ...] | None = None
    modes: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None
    image_size: int | None = None
    paths: tuple[str, ...] | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A sweep as written down: blocks in order of interest, and the settings of their cases."""

    name: str
    summary: str  # one line
    settings: Settings
    blocks: tuple[Block, ...]
    budget_s: float | None = None  # a run of it ends within this time, unless its reader asks for another
