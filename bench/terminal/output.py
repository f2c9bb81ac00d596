"""The output of a command: tables for people, file names alone with --quiet, one JSON object with --json."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf
from pathlib import Path

import click
import msgspec
from rich.console import Console, RenderableType

from bench.terminal.exits import Exit
from bench.terminal.wrapped import say

REPORT = "report.md"
_PIPE_WIDTH = 200  # columns: a log file has no width of its own, and folded tables are hard to search


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The amount of output, and its reader: a person or a script."""

    quiet: bool = False
    as_json: bool = False

    def console(self) -> Console:
        """The console for people: on stdout, or on stderr where stdout belongs to the JSON object."""
        stream = sys.stderr if self.as_json else sys.stdout
        width = None if stream.isatty() else _PIPE_WIDTH
        return Console(file=stream, quiet=self.quiet, width=width, highlight=False)

    def json(self, value: object) -> None:
        """Print a value as JSON on stdout."""
        click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2))

    def finish(
        self,
        rows: Sequence[Mapping[str, object]],
        ends: Exit,
        *,
        files: Sequence[Path],
        lines: Sequence[str] = (),
        table: RenderableType | None = None,
    ) -> None:
        """Print the end of a command: the table and the lines for people, the rows for scripts, the files for both."""
        console = self.console()
        if table is not None and not self.as_json:
            console.print(table)
        for line in lines:
            say(console, line)
        if self.as_json:
            plain = [{name: _plain(value) for name, value in row.items()} for row in rows]
            self.json({"rows": plain, "files": files, "exit_code": ends})
            return
        self.name_files(console, files)

    def name_files(self, console: Console, files: Sequence[Path]) -> None:
        """The report where there is one, then what else was written: a name a line for scripts."""
        report = next((file for file in files if file.name == REPORT), None)
        if report is not None:
            say(console, f"report: {report}")
        if report is not None and console.is_terminal and not self.quiet:
            beside = [file.relative_to(report.parent) for file in files if _beside(file, report)]
            say(console, f"beside it: {', '.join(_in_short(beside))}")
            files = [file for file in files if file != report and not _beside(file, report)]
        if files:
            console.print("wrote:")
        for file in files:
            click.echo(file)


def _beside(file: Path, report: Path) -> bool:
    return file != report and file.is_relative_to(report.parent)


def _in_short(files: Sequence[Path]) -> list[str]:
    """The names of files, and how many each folder holds."""
    folders = Counter(str(file.parent) for file in files if file.parent != Path())
    return [
        *(file.name for file in files if file.parent == Path()),
        *(f"{number} files in {folder}/" for folder, number in folders.items()),
    ]


def _plain(value: object) -> object:
    """The value for JSON, which has no infinity."""
    return "Infinity" if isinstance(value, float) and isinf(value) else value
