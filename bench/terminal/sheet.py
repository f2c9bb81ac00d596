"""Tables that fit the terminal: which columns are shown, and in which form, follows from data and the width.

A cell is never cut, nor broken inside a word or a number. What is the same in all rows goes to the title; what groups
the rows becomes columns where they fit, else a line above each group.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

Row: TypeAlias = Mapping[str, Any]
Align: TypeAlias = Literal["left", "right"]

DOT = " · "
EMPTY = frozenset({"", "–"})  # noqa: RUF001 - an en dash, the sign of a missing figure
AXES_RANK = 10  # wishes below this rank are met before axes become columns
_GAP = 2  # blanks between columns
_PROSE_WIDTH = 18  # what a column of prose needs; it takes what is left


@dataclass(frozen=True, slots=True)
class Form:
    """One way to show a column. Positional, to read as a table."""

    rank: int  # 0: always shown; else shown while the width lasts, the lower the sooner, equal ranks together
    show: Callable[[Row], str]


@dataclass(frozen=True, slots=True)
class Column:
    """One column; its later forms replace its first where there is room. Positional, to read as a table."""

    title: str
    forms: tuple[Form, ...]  # the shortest first
    align: Align = "right"
    style: Callable[[Row], str] = lambda _: ""
    prose: bool = False  # may be broken between words
    key: bool = False  # names the row: repeated where a table is shown in parts


@dataclass(frozen=True, slots=True)
class Axis:
    """A key that rows are grouped by. Positional, to read as a table."""

    name: str  # its key in a row
    title: str  # above its column
    words: str = "{}"  # outside of a column
    align: Align = "left"
    usual: object = None  # not worth a word where all rows have it

    def says(self, value: object) -> str:
        return self.words.format(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A table for the terminal, and an empty line; prints nothing without rows."""

    rows: Sequence[Row]
    columns: Sequence[Column]
    axes: Sequence[Axis] = ()  # the outermost first
    title: str = ""
    note: str = ""  # below it
    elsewhere: str = ""  # where columns are found that did not fit

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text | Table | str]:
        del console
        if not self.rows:
            return
        layout = _Layout(self, options.max_width)
        if title := DOT.join(word for word in (self.title, *layout.common) if word):
            yield Text(title, "bold")
        for place, part in enumerate(layout.parts()):
            yield from ("",) if place else ()
            yield from layout.draw(part)
        if notes := "; ".join(filter(None, (self.note, self._left_out(layout.left_out, options.max_width)))):
            yield Text(notes, "dim")
        yield ""

    def _left_out(self, titles: list[str], width: int) -> str:
        where = f" ({self.elsewhere})" if self.elsewhere else ""
        return f"no room at {width} columns for {', '.join(titles)}{where}" if titles else ""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A column in one of its forms."""

    column: Column
    cells: tuple[str, ...]

    @property
    def least(self) -> int:
        """The least width: headings may be broken between words."""
        widest = max(map(cell_len, self.cells))
        if self.column.prose:
            widest = max(min(widest, _PROSE_WIDTH), *map(_longest, self.cells))
        return max(widest, _longest(self.column.title))

    @property
    def natural(self) -> int:
        return max(map(cell_len, (self.column.title, *self.cells)))


class _Layout:
    """The part of a sheet that is shown at a width."""

    def __init__(self, sheet: Sheet, width: int) -> None:
        self.sheet, self.width = sheet, width
        varying = [axis for axis in sheet.axes if len(_values(axis, sheet.rows)) > 1]
        self.common = [_common(axis, sheet.rows[0]) for axis in sheet.axes if axis not in varying]
        columns = [column for column in sheet.columns if any(_filled(column, row) for row in sheet.rows)]
        self.forms = {column: column.forms[0] for column in columns if not column.forms[0].rank}
        self.inner: list[Axis] = []  # the axes that are columns
        ranks = sorted({form.rank for column in columns for form in column.forms} - {0})
        for rank in (rank for rank in ranks if rank < AXES_RANK):
            self._wish(columns, rank)
        for axis in reversed(varying):
            if self._least([axis, *self.inner], self.forms) > width:
                break
            self.inner.insert(0, axis)
        for rank in (rank for rank in ranks if rank >= AXES_RANK):
            self._wish(columns, rank)
        self.outer = varying[: len(varying) - len(self.inner)]
        self.left_out = [column.title for column in columns if column not in self.forms]
        self.chosen = [*map(self._axis, self.inner), *self._in_order(self.forms)]

    def _wish(self, columns: Iterable[Column], rank: int) -> None:
        """Take the forms of a rank if they fit."""
        wider = self.forms | {column: form for column in columns for form in column.forms if form.rank == rank}
        if self._least(self.inner, wider) <= self.width:
            self.forms = wider

    def _least(self, axes: Iterable[Axis], forms: Mapping[Column, Form]) -> int:
        return _total(chosen.least for chosen in (*map(self._axis, axes), *self._in_order(forms)))

    def _in_order(self, forms: Mapping[Column, Form]) -> list[_Chosen]:
        return [self._shown(column, forms[column]) for column in self.sheet.columns if column in forms]

    def _axis(self, axis: Axis) -> _Chosen:
        column = Column(axis.title, (Form(0, lambda row: str(row[axis.name])),), axis.align, key=True)
        return self._shown(column, column.forms[0])

    def _shown(self, column: Column, form: Form) -> _Chosen:
        return _Chosen(column, tuple(map(form.show, self.sheet.rows)))

    def parts(self) -> list[list[_Chosen]]:
        """The columns, in several tables where even the needed ones do not fit beside each other."""
        keys = [chosen for chosen in self.chosen if chosen.column.key]
        parts = [keys]
        for chosen in self.chosen:
            if chosen in keys:
                continue
            if parts[-1] != keys and _total(other.least for other in (*parts[-1], chosen)) > self.width:
                parts.append(keys)
            parts[-1] = [*parts[-1], chosen]
        return [[chosen for chosen in self.chosen if chosen in part] for part in parts]

    def draw(self, part: list[_Chosen]) -> Iterator[Text | Table | str]:
        """The heading, then group by group."""
        widths = self._widths(part)
        yield self._table(part, widths, (), heading=True)
        groups = self._groups(self.outer)
        for place, (values, numbers) in enumerate(groups):
            if self.outer:
                words = [axis.says(value) for axis, value in zip(self.outer, values, strict=True)]
                yield from ("",) if place else ()
                yield Text(DOT.join(words), "bold")
            cells = [cell for _, cell in self._groups(self.inner, numbers)]
            apart = 2 * len(cells) <= len(numbers)  # no blank line after every single row
            for position, cell in enumerate(cells):
                yield from ("",) if apart and position else ()
                yield self._table(part, widths, cell, heading=False)

    def _groups(
        self, axes: Sequence[Axis], numbers: Sequence[int] | None = None
    ) -> list[tuple[tuple[Any, ...], list[int]]]:
        """The numbers of the rows by what they have on some axes, in the order in which they come."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number in range(len(self.sheet.rows)) if numbers is None else numbers:
            groups.setdefault(tuple(self.sheet.rows[number][axis.name] for axis in axes), []).append(number)
        return list(groups.items())

    def _widths(self, part: list[_Chosen]) -> list[int]:
        """The width that each column needs; the rest goes to prose first, then to headings that would be broken."""
        widths = [chosen.least for chosen in part]
        for place in sorted(range(len(part)), key=lambda place: not part[place].column.prose):
            widths[place] += max(0, min(part[place].natural - widths[place], self.width - _total(widths)))
        return widths

    def _table(self, part: list[_Chosen], widths: list[int], numbers: Iterable[int], *, heading: bool) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), show_header=heading
        )
        for chosen, width in zip(part, widths, strict=True):
            table.add_column(
                chosen.column.title, justify=chosen.column.align, width=width, vertical="bottom" if heading else "top"
            )
        for number in numbers:
            row = self.sheet.rows[number]
            table.add_row(*(Text(chosen.cells[number], chosen.column.style(row), overflow="fold") for chosen in part))
        return table


def _total(widths: Iterable[int]) -> int:
    return sum(width + _GAP for width in widths) - _GAP


def _longest(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _values(axis: Axis, rows: Iterable[Row]) -> set[Any]:
    return {row[axis.name] for row in rows}


def _common(axis: Axis, row: Row) -> str:
    value = row[axis.name]
    return "" if value == axis.usual else axis.says(value)


def _filled(column: Column, row: Row) -> bool:
    return any(form.show(row) not in EMPTY for form in column.forms)
