"""One line a record: what a journal's file holds, written and read back. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec

from bench.types import Ceilings, Environment, Plan, Result, Session

SCHEMA = 1

JournalRecord: TypeAlias = Environment | Ceilings | Result | Session  # what follows the plan

_KINDS: dict[str, type[JournalRecord]] = {
    "environment": Environment,
    "ceilings": Ceilings,
    "result": Result,
    "session": Session,
}
_NAMES: dict[type[JournalRecord], str] = {kind: name for name, kind in _KINDS.items()}

T = TypeVar("T")


class UnfitRecordError(ValueError):
    """The record holds what a journal cannot hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The whole lines of a journal."""

    plan: Plan
    records: tuple[JournalRecord, ...]
    size: int  # bytes up to the end of the last whole line
    notices: tuple[str, ...]


class _Head(msgspec.Struct):
    type: str
    schema: int | None = None


def load(path: Path) -> Contents:
    *lines, rest = path.read_bytes().split(b"\n")
    if lines and not rest and not _well_formed(lines[-1]):
        rest = lines.pop() + b"\n"  # a power cut may keep the newline and lose the blocks before it
    notices = (f"{path.name}: line {len(lines) + 1} was torn and is dropped: its case runs again",) if rest else ()
    if not lines:
        raise ValueError(f"{path} is empty, without a plan: delete it and start the run again")
    plan = _decode(lines[0], f"{path}, line 1", {"plan": Plan})
    return Contents(
        plan=plan,
        records=tuple(_decode(line, f"{path}, line {number}", _KINDS) for number, line in enumerate(lines[1:], 2)),
        size=sum(len(line) + 1 for line in lines),
        notices=notices,
    )


def _well_formed(line: bytes) -> bool:
    try:
        msgspec.json.decode(line.decode())
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _decode(line: bytes, where: str, kinds: Mapping[str, type[T]]) -> T:
    try:
        text = line.decode()
        head = msgspec.json.decode(text, type=_Head)
        if head.type not in kinds:
            raise ValueError(f"{where}: expected a record of type {' or '.join(kinds)}, not {head.type!r}; restore it")
        if head.type == "plan" and head.schema != SCHEMA:
            raise ValueError(
                f"{where}: schema {head.schema}, but this resbench reads {SCHEMA}; use the one that ran it"
            )
        return msgspec.json.decode(text, type=kinds[head.type], strict=False)  # not strict: "Infinity" as a float
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: corrupt ({error}); restore the file, or delete that line to lose it") from error


def line_of(head: dict[str, object], record: Plan | JournalRecord) -> bytes:
    try:
        fields = {name: _plain(value, name) for name, value in msgspec.to_builtins(record).items()}
        return msgspec.json.encode({**head, **fields}) + b"\n"
    except (TypeError, OverflowError, msgspec.MsgspecError) as error:
        raise UnfitRecordError(f"{type(record).__name__}: {error}") from error


def _plain(value: object, name: str) -> object:
    """The value with what JSON cannot say replaced: infinities and lone surrogates (of undecodable file names)."""
    match value:
        case float():
            if math.isnan(value):
                raise UnfitRecordError(f"{name}: NaN is not a result; store an infinity, or nothing")
            return value if math.isfinite(value) else f"{'-' if value < 0 else ''}Infinity"
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {_plain(key, name): _plain(item, f"{name}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, name) for item in value]
    return value
