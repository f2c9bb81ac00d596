"""Rows of plain data as a terminal table. Imports no torch."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from bench.terminal.sheet import EMPTY, Align, Axis, Column, Form, Sheet
from bench.types import Status

STYLES: dict[Status, str] = {
    Status.VALID: "green",
    Status.PARITY_FAILED: "bold red",
    Status.UNSTABLE: "yellow",
    Status.THROTTLED: "yellow",
    Status.RECOMPILED: "yellow",
    Status.SHARED_GPU: "yellow",
    Status.OOM: "red",
    Status.TIMEOUT: "red",
    Status.CRASHED: "red",
    Status.NOT_TIMED: "dim",
    Status.UNSUPPORTED: "dim",
}


Rows = list[dict[str, object]]

PROSE = frozenset({"what it is", "needs", "value", "reason"})  # columns that may be broken between words
_FIGURE = re.compile(r"[\d.,]+( %|x( ±.*| \[.*\])?)?|inf|never")


def table(
    rows: Rows,
    title: str = "",
    *,
    axes: Sequence[Axis] = (),
    later: Sequence[str] = (),
    elsewhere: str = "a wider terminal has them",
) -> Sheet:
    """Rows of the same keys as a terminal table; columns without any value are left out.

    Where the width does not suffice, the columns in `later` are left out, the last first; the others then come in
    several tables, each with the first, which names the row. `elsewhere` says where to find those left out.
    """
    names = [name for name in rows[0] if name not in {axis.name for axis in axes}] if rows else []
    ranks = {name: rank for rank, name in enumerate(later, 1)}
    columns = [column(name, rows, rank=ranks.get(name, 0), key=name == names[0]) for name in names]
    return Sheet(rows=rows, columns=columns, axes=axes, title=title, elsewhere=elsewhere)


def column(name: str, rows: Rows, *, rank: int = 0, key: bool = False) -> Column:
    cells = {text_of(row[name]) for row in rows} - EMPTY
    align: Align = "right" if cells and all(map(_FIGURE.fullmatch, cells)) else "left"
    return Column(name, (Form(rank, cell_of(name)),), align, _style_of(name), prose=name in PROSE, key=key)


def cell_of(name: str) -> Callable[[Any], str]:
    return lambda row: text_of(row[name])


def _style_of(name: str) -> Callable[[Any], str]:
    return lambda row: _style(name, row[name])


def text_of(value: object) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:.2g}"
        case list() | tuple():
            return ", ".join(map(str, value))
    return str(value)


def _style(name: str, value: object) -> str:
    return next((style for status, style in STYLES.items() if name == "verdict" and value == status.value), "")
