"""Rows as a Markdown table."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from bench.render.records import Record
from bench.render.text import MISSING


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a printed table. Positional, to read as a table."""

    title: str
    show: Callable[[Record], str]
    align: str = "right"


@dataclass(frozen=True, slots=True, kw_only=True)
class TitledTable:
    """A table under its own small heading."""

    title: str
    table: str


def texts(rows: list[Record], *, left: int = 1) -> str:
    """The rows, whose values are texts, as a Markdown table with their keys for titles; see `table`.

    The first `left` columns are aligned to the left.
    """
    names = list(rows[0]) if rows else []
    return table(rows, tuple(_column(name, "left" if place < left else "right") for place, name in enumerate(names)))


def _column(name: str, align: str) -> Column:
    return Column(name, lambda row: str(row[name]), align)


def table(rows: list[Record], columns: tuple[Column, ...]) -> str:
    """The rows as a Markdown table, without the columns in which no row has a value; empty for no rows."""
    cells = {column.title: [column.show(row) for row in rows] for column in columns}
    filled = [column for column in columns if set(cells[column.title]) - {MISSING, ""}]
    if not filled:
        return ""
    shown = pd.DataFrame({column.title: cells[column.title] for column in filled})
    alignment = [column.align for column in filled]
    # no padding: cells of one table differ much in width, and a diff of two reports should show what changed
    text: str = shown.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, colalign=alignment)
    return text
