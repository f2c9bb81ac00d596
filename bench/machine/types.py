"""The results of `resbench doctor`, as frozen data. Imports no torch."""

from dataclasses import dataclass

from bench.types import Ceilings, Device

Cell = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A device, and what it runs.

    A cell is a path, mode and precision with `reason`: why it cannot run here, `untimed`: why it can only be checked,
    or `emulated`: why presets leave it out; all empty where nothing is missing.
    """

    device: Device
    facts: dict[str, str]
    ceilings: Ceilings
    reaches: str  # the ceilings in words
    cells: list[Cell]
