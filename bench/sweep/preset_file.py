"""Reads a preset's TOML file, and says of a malformed one which line and key are wrong. Imports no torch."""

import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from bench.sweep.axes import Block
from bench.sweep.rules import allowed_values, why_refused, why_too_small
from bench.types import Settings


class PresetFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A preset as it is written down."""

    summary: str
    settings: Settings = Settings()
    budget_s: float | None = None
    sweep: tuple[Block, ...]


_KEYS = {
    "": ("summary", "budget_s", "settings", "sweep"),
    "settings": tuple(setting.name for setting in fields(Settings)),
    "sweep": Block.__struct_fields__,
}


def parse(text: str, file: Path) -> PresetFile:
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
        written = msgspec.convert(document, PresetFile)
    except msgspec.ValidationError as mistyped:
        message, _, place = str(mistyped).replace(" | null", "").partition(" - at ")  # TOML has no null
        steps = [int(index) if index else name for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", place)]
        if unknown := re.search(r"unknown field `(.*)`", message):
            raise error([*steps, unknown[1]], _unknown_key(steps)) from mistyped
        raise error(steps, message[0].lower() + message[1:] + allowed_values(steps)) from mistyped
    for steps, value in _leaves(document):
        if steps[0] == "settings" and steps[-1] not in _KEYS["settings"]:  # msgspec ignores them in a dataclass
            raise error(steps, _unknown_key(steps[:-1]))
        if problem := why_refused(str(steps[-1]), value):
            raise error(steps, problem)
    for number, block in enumerate(written.sweep):
        if problem := why_too_small(block):
            raise error(["sweep", number, "image_size"], problem)
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


def _unknown_key(steps: list[str | int]) -> str:
    return f"unknown key; allowed: {', '.join(_KEYS[str(steps[0]) if steps else ''])}"


def _line(text: str, holds: Callable[[dict[str, Any]], bool]) -> int:
    """The first line of the first statement with which the document meets the condition.

    The beginning of a TOML text parses where it ends between two statements and only there, so that trying gives the
    statements. Where none does, it is the line of the first statement that does not parse.
    """
    lines = text.split("\n")
    line = 1
    for end in range(1, len(lines) + 1):
        try:
            document = tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue
        if holds(document):
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
