"""Axes -> cases: reads the presets and turns them into the ordered cells of a sweep."""

from collections.abc import Iterable
from dataclasses import fields, replace
from itertools import product
from typing import cast

import msgspec

from bench.sweep.axes import Axes, Block, Preset
from bench.sweep.rules import why_refused, why_too_small
from bench.types import Case, Device, Mode, Precision
from resnet.models.table import network_of
from resnet.paths import PATHS

_CUDA_NEEDS = {"cuda", "cuda for timing"}


def expand(preset: Preset, overrides: Axes | None = None) -> tuple[Case, ...]:
    """The cases of a preset in the order they run, the first of duplicates only; eager leads each cell.

    Raises:
        ValueError: an override is not allowed, or no case is left.
    """
    changes = {axis.name: getattr(overrides, axis.name) for axis in fields(Axes)} if overrides else {}
    changes = {axis: value for axis, value in changes.items() if value is not None}
    for axis, value in changes.items():
        if problem := why_refused(axis, value):
            raise ValueError(f"{axis}: {problem}")
    blocks = [msgspec.structs.replace(block, **changes) for block in preset.blocks]
    for block in blocks:
        if problem := why_too_small(block):
            raise ValueError(f"image_size: {problem}")
    cases = tuple(dict.fromkeys(case for block in blocks for case in _cases(block)))
    if not cases:
        raise ValueError(f"no case is left of preset {preset.name}: the paths asked for do not have its modes")
    return cases


def max_batch_cases(cases: Iterable[Case]) -> tuple[Case, ...]:
    """One search for the largest batch that fits, from 1 upwards, for each way of running that `cases` measure."""
    measured = (case for case in cases if case.kind == "measure")
    return tuple(dict.fromkeys(replace(case, kind="max-batch", batch_size=1) for case in measured))


def _cases(block: Block) -> Iterable[Case]:
    cells = product(block.models, block.modes, block.precisions, block.batch_sizes)
    for model, mode, precision, batch_size in cells:
        for path in _paths(block, mode):
            yield Case(
                model=model,
                mode=cast("Mode", mode),
                precision=cast("Precision", precision),
                batch_size=batch_size,
                image_size=network_of(model).height(block.image_size),
                path=path,
                device=cast("Device", block.device),
            )


def _paths(block: Block, mode: str) -> list[str]:
    """The names of the paths of one cell, the baseline first."""
    chosen: dict[str, None] = {}
    for item in block.paths:
        if item == "all":
            chosen |= dict.fromkeys(path.name for path in PATHS if mode in path.modes)
        elif item == "capable":
            chosen |= dict.fromkeys(_capable(block.device, mode))
        elif not item.startswith("-"):
            chosen[item] = None
    left_out = {item.removeprefix("-") for item in block.paths if item.startswith("-")}
    return sorted((name for name in chosen if name not in left_out), key=lambda name: name != "eager")


def _capable(device: str, mode: str) -> Iterable[str]:
    for path in PATHS:
        on_cpu = not _CUDA_NEEDS & set(path.needs) and (path.cpu_modes is None or mode in path.cpu_modes)
        if mode in path.modes and (device != "cpu" or on_cpu):
            yield path.name
