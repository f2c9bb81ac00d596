"""What is printed at a width, for the tests of tables and lines."""

from io import StringIO

from rich.cells import cell_len
from rich.console import Console, RenderableType

WIDTHS = (80, 100, 140)


def console(width: int, *, terminal: bool) -> Console:
    """Writes into a string, without colours: control codes are not for comparing."""
    return Console(file=StringIO(), width=width, force_terminal=terminal, color_system=None, highlight=False)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def shown(printed: RenderableType, width: int, *, terminal: bool = False) -> list[str]:
    """The lines of a table, none of which is longer than the width."""
    to = console(width, terminal=terminal)
    to.print(printed)
    found = lines(to)
    assert [line for line in found if cell_len(line) > width or "…" in line] == []
    return found


def together(found: list[str], *words: str) -> list[str]:
    """The lines that hold all of these words, each between blanks."""
    return [line for line in found if all(f" {word} " in f" {line} " for word in words)]
