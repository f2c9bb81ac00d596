"""What the terminal shows while a run is going on: progress with the time left, and a line for each finished case.

Off a terminal (a pipe, a log file) there are no bars and no control codes, only one line a case.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from bench.run.case_line import CaseLines
from bench.types import Case, Plan, Result, Status
from bench.terminal.wrapped import say

_WIDE = 120  # columns that leave room for a longer bar
_WHOLE_RUN_S = 7 * 86400.0  # cases differ too much for a short window to tell the time left


@dataclass(frozen=True, slots=True)
class _Shortened:
    """A text that loses its middle where it does not fit: it ends with the path of a case and its phase."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        del console
        yield Text(shortened(self.text, options.max_width), no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        del console, options
        return Measurement(1, len(self.text))


def shortened(text: str, width: int) -> str:
    """E.g. `resnet50-tr…autotune-cuda: sampling`."""
    if len(text) <= width:
        return text
    head = (width - 1) // 3
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}" if width > 1 else "…"[:width]


class _Description(ProgressColumn):
    def render(self, task: Task) -> _Shortened:
        return _Shortened(task.description)


def bar(console: Console) -> Progress:
    """A description, how much is done and the time left, gone at the end; on a terminal only.

    The description alone gives way where the width does not suffice.
    """
    return Progress(
        SpinnerColumn(table_column=Column(no_wrap=True)),
        _Description(),
        BarColumn(bar_width=24 if console.width >= _WIDE else 8, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TextColumn("left"),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        speed_estimate_period=_WHOLE_RUN_S,
        disable=not console.is_terminal,
    )


class Watch:
    """An observer of the runner (see `bench.run.phases.Observer`) that shows what it hears on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = bar(console)
        self._task = self._progress.add_task("starting", total=None)
        self._pending = 0
        self._finished = 0
        self._lines = CaseLines(console=console)
        self._reasons: set[str] = set()  # why cases cannot run, as told so far

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def refresh(self) -> None:
        """Draw now; between refreshes the terminal is drawn some times a second."""
        self._progress.refresh()

    def preparing(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def started(self, plan: Plan, pending: int) -> None:
        self._pending = pending
        self._progress.update(self._task, total=pending)
        done = len(plan.cases) - pending
        text = f"{plan.name}: {pending} cases to run{f', {done} already done' if done else ''}"
        self._lines = CaseLines.of(plan.cases, self._console)
        say(self._console, f"{text} ({self._lines.shared})" if self._lines.shared else text)

    def notice(self, text: str) -> None:
        say(self._console, Text(f"notice: {text}", "yellow"))

    def case_started(self, case: Case, number: int) -> None:
        del number  # the bar counts the finished ones
        self.phase(case, "start-up")

    def phase(self, case: Case, phase: str) -> None:
        self._progress.update(self._task, description=f"{self._lines.name(case)}: {phase}")

    def case_finished(self, result: Result) -> None:
        self._finished += 1
        self._progress.update(self._task, completed=self._finished)
        self._lines.say(self._told_once(result), self._finished, self._pending)

    def _told_once(self, result: Result) -> Result:
        """On a terminal the many cases that cannot run for one reason give it once."""
        if result.status is not Status.UNSUPPORTED or not self._console.is_terminal:
            return result
        known = result.reason in self._reasons
        self._reasons.add(result.reason)
        return replace(result, reason="as above") if known else result
