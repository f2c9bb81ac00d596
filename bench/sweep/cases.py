"""Axes -> cases: reads the presets and turns them into the ordered cells of a sweep."""

import math
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, cast, get_args

import msgspec

from bench.types import Case, Device, Mode, Precision, Settings
from resnet.models.table import DEPTHS
from resnet.paths import PATHS, PATHS_BY_NAME

PRESETS = Path(__file__).with_name("presets")
SELECTORS = ("all", "capable")
_CUDA_NEEDS = {"cuda", "cuda for timing"}
_NUMBERED_DEPTHS = {int(model.removeprefix("resnet")): model for model in DEPTHS}


class Block(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[sweep]]` table of a preset: the cells of its axes, depths outermost, paths innermost.

    `paths` holds names of paths and selectors: `all` stands for every path that has the mode, `capable` for those of
    them that make sense on the block's device, and `-NAME` takes one out again.
    """

    depths: tuple[int, ...]
    modes: tuple[str, ...]
    precisions: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    image_size: int = 224
    paths: tuple[str, ...] = ("all",)
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """What a person asks for instead of a preset's axes; None leaves an axis as the preset has it."""

    depths: tuple[int, ...] | None = None
    modes: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None
    image_size: int | None = None
    paths: tuple[str, ...] | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A sweep as written down: blocks in order of interest, and how their cases are measured."""

    name: str
    summary: str  # one line
    settings: Settings
    blocks: tuple[Block, ...]
    budget_s: float | None = None  # a run of it ends within this time, unless its reader asks for another


class _File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    summary: str
    settings: Settings = Settings()
    budget_s: float | None = None
    sweep: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class _Rule:
    """Which values a key may have, for the check and for the person."""

    accepts: Callable[[Any], bool]
    allowed: str


def _one_of(names: Iterable[Any]) -> _Rule:
    choices = tuple(names)
    return _Rule(choices.__contains__, ", ".join(map(str, choices)))


_SECONDS = _Rule(lambda value: 0 < value < math.inf, "a number of seconds above 0")

RULES: dict[str, _Rule] = {
    "summary": _Rule(lambda text: bool(text.strip()) and "\n" not in text, "one line of text"),
    "budget_s": _SECONDS,
    "sweep": _Rule(bool, "at least one [[sweep]] table"),
    "depths": _one_of(_NUMBERED_DEPTHS),
    "modes": _one_of(get_args(Mode)),
    "precisions": _one_of(get_args(Precision)),
    "batch_sizes": _Rule(lambda size: size >= 1, "whole numbers from 1"),
    "image_size": _Rule(lambda size: size >= 32, "a whole number from 32"),  # noqa: PLR2004 the stem divides by 32
    "paths": _Rule(
        lambda path: path in SELECTORS or path.removeprefix("-") in PATHS_BY_NAME,
        ", ".join((*SELECTORS, *PATHS_BY_NAME)) + ", or -NAME to leave one out",
    ),
    "device": _one_of(get_args(Device)),
    "confidence": _Rule(lambda value: 0 < value < 1, "a number between 0 and 1"),
    "warmup_budget_s": _SECONDS,
    "sample_minimum_s": _Rule(lambda value: 0 <= value < math.inf, "a number of seconds from 0"),
    "sample_budget_s": _SECONDS,
    "timeout_s": _SECONDS,
    "parity_steps": _Rule(lambda value: value >= 1, "a whole number from 1"),
    "parity_budget_s": _SECONDS,
    "weights": _Rule(lambda _: True, "the name of published weights, or the path of a state_dict file"),
    "seed": _Rule(lambda value: value >= 0, "a whole number from 0"),
}
_KEYS = {
    "": ("summary", "budget_s", "settings", "sweep"),
    "settings": tuple(setting.name for setting in fields(Settings)),
    "sweep": Block.__struct_fields__,
}


def preset_names() -> tuple[str, ...]:
    """The names of the presets that come with resbench."""
    return tuple(sorted(file.stem for file in PRESETS.glob("*.toml")))


def load_preset(name_or_path: str) -> Preset:
    """Read a preset of ours by its name, or somebody's own by the path of its TOML file.

    Raises:
        ValueError: there is no such preset, or it is malformed; the message names the file, the line and the key.
    """
    ours = name_or_path in preset_names()
    file = PRESETS / f"{name_or_path}.toml" if ours else Path(name_or_path)
    if not ours and file.suffix != ".toml":
        names = ", ".join(preset_names())
        raise ValueError(f"unknown preset {name_or_path!r}: choose from {names}, or give the path of a .toml file")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read the preset {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read the preset {file}: it is not UTF-8 text") from error
    written = _parse(text, file)
    return Preset(
        name=file.stem,
        summary=written.summary,
        settings=written.settings,
        blocks=written.sweep,
        budget_s=written.budget_s,
    )


def expand(preset: Preset, overrides: Axes | None = None) -> tuple[Case, ...]:
    """The cases of a preset in the order they run, the first of duplicates only; eager leads each cell.

    Raises:
        ValueError: an override is not allowed, or no case is left.
    """
    changes = {axis.name: getattr(overrides, axis.name) for axis in fields(Axes)} if overrides else {}
    changes = {axis: value for axis, value in changes.items() if value is not None}
    for axis, value in changes.items():
        if problem := _problem(axis, value):
            raise ValueError(f"{axis}: {problem}")
    blocks = (msgspec.structs.replace(block, **changes) for block in preset.blocks)
    cases = tuple(dict.fromkeys(case for block in blocks for case in _cases(block)))
    if not cases:
        raise ValueError(f"no case is left of preset {preset.name}: the paths asked for do not have its modes")
    return cases


def max_batch_cases(cases: Iterable[Case]) -> tuple[Case, ...]:
    """One search for the largest batch that fits, from 1 upwards, for each way of running that `cases` measure."""
    measured = (case for case in cases if case.kind == "measure")
    return tuple(dict.fromkeys(replace(case, kind="max-batch", batch_size=1) for case in measured))


def _cases(block: Block) -> Iterable[Case]:
    cells = product(block.depths, block.modes, block.precisions, block.batch_sizes)
    for depth, mode, precision, batch_size in cells:
        for path in _paths(block, mode):
            yield Case(
                model=_NUMBERED_DEPTHS[depth],
                mode=cast("Mode", mode),
                precision=cast("Precision", precision),
                batch_size=batch_size,
                image_size=block.image_size,
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


class _Malformed(Exception):  # noqa: N818 becomes a ValueError with the name of the file
    """What is wrong with a preset, and at which line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def _parse(text: str, file: Path) -> _File:
    """The preset as written, every key and every value of it checked."""

    def error(steps: list[str | int], message: str) -> ValueError:
        line = _line(text, lambda document: _holds(document, steps))
        key = ".".join(step for step in steps if isinstance(step, str))
        return ValueError(f"{file}, line {line}: {key}{': ' if key else ''}{message}")

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as malformed:
        line = _line(text, lambda _: False)
        key = re.match(r"\s*([\w.-]+)\s*=", text.split("\n")[line - 1])
        raise ValueError(
            f"{file}, line {line}: {key[1] + ': ' if key else ''}malformed TOML: {malformed}"
        ) from malformed
    try:
        written = msgspec.convert(document, _File)
    except msgspec.ValidationError as mistyped:
        message, _, place = str(mistyped).partition(" - at ")
        steps = [int(index) if index else name for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", place)]
        if unknown := re.search(r"unknown field `(.*)`", message):
            raise error([*steps, unknown[1]], _unknown_key(steps)) from mistyped
        raise error(steps, message[0].lower() + message[1:] + _allowed(steps)) from mistyped
    for steps, value in _leaves(document):
        if steps[0] == "settings" and steps[-1] not in _KEYS["settings"]:  # msgspec ignores them in a dataclass
            raise error(steps, _unknown_key(steps[:-1]))
        if problem := _problem(str(steps[-1]), value):
            raise error(steps, problem)
    return written


def _leaves(document: dict[str, Any]) -> Iterable[tuple[list[str | int], Any]]:
    """Every key of a document of the right shape with the way to it."""
    for key in ("summary", "budget_s", "sweep"):
        if key in document:
            yield [key], document[key]
    for key, value in document.get("settings", {}).items():
        yield ["settings", key], value
    for place, block in enumerate(document["sweep"]):
        for key, value in block.items():
            yield ["sweep", place, key], value


def _problem(key: str, value: Any) -> str:  # noqa: ANN401 any value of the type that the key has
    """Why the key may not have the value; empty if it may."""
    values = value if isinstance(value, list | tuple) else (value,)
    refused = [item for item in values if not RULES[key].accepts(item)]
    if refused or not values:
        return f"{', '.join(map(repr, refused)) or 'an empty list'} is not allowed{_allowed([key])}"
    return ""


def _allowed(steps: list[str | int]) -> str:
    names = [step for step in steps if step in RULES]
    return f"; allowed: {RULES[str(names[-1])].allowed}" if names else ""


def _unknown_key(steps: list[str | int]) -> str:
    return f"unknown key; allowed: {', '.join(_KEYS[str(steps[0]) if steps else ''])}"


def _line(text: str, found: Callable[[dict[str, Any]], bool]) -> int:
    """The first line of the first statement with which the document holds what is looked for.

    The beginning of a TOML text parses where it ends between two statements and only there, so that trying gives the
    statements. Where nothing is found that is the line of the first statement that does not parse.
    """
    lines = text.split("\n")
    line = 1
    for end in range(1, len(lines) + 1):
        try:
            document = tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue
        if found(document):
            return line
        line = end + 1
    return line


def _holds(document: Any, steps: list[str | int]) -> bool:  # noqa: ANN401 whatever TOML can say
    try:
        for step in steps:
            document = document[step]
    except (KeyError, IndexError, TypeError):
        return False
    return True
