"""What the terminal shows while a run is going on: progress with the time left, and a line for each finished case.

Off a terminal (a pipe, a log file) there are no bars and no control codes, only one line a case.
"""

from statistics import median
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from bench.options import STYLES
from bench.rows import Row
from bench.types import Case, Plan, Result, Status

_STATUS_WIDTH = max(len(status) for status in Status)
_WHOLE_RUN_S = 7 * 86400.0  # cases differ too much for a short window to tell the time left


def bar(console: Console) -> Progress:
    """A description, how much is done and the time left, gone at the end; on a terminal only."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        speed_estimate_period=_WHOLE_RUN_S,
        disable=not console.is_terminal,
    )


class Watch:
    """An observer of the runner (see `bench.runner.Observer`) that shows what it hears on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = bar(console)
        self._task = self._progress.add_task("starting", total=None)
        self._pending = 0
        self._finished = 0

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
        self._line(Text(f"{plan.name}: {pending} cases to run{f', {done} already done' if done else ''}"))

    def notice(self, text: str) -> None:
        self._line(Text(f"notice: {text}", "yellow"))

    def case_started(self, case: Case, number: int) -> None:
        del number  # the bar counts the finished ones
        self.phase(case, "start-up")

    def phase(self, case: Case, phase: str) -> None:
        self._progress.update(self._task, description=f"{case.key}: {phase}")

    def case_finished(self, result: Result) -> None:
        self._finished += 1
        self._progress.update(self._task, completed=self._finished)
        width = len(str(self._pending))
        self._line(
            Text.assemble(
                f"[{self._finished:>{width}}/{self._pending}] ",
                (f"{result.status:<{_STATUS_WIDTH}}", STYLES[result.status]),
                f"  {result.case.key}  {outcome(result)}  ({sum(result.phases_s.values()):.1f} s)",
            )
        )

    def _line(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def outcome(result: Result) -> str:
    """What came out of one case, in a few words: its speed, its largest batch or its parity, and its reason."""
    return ", ".join(part for part in (_figure(result), " ".join(result.reason.split())) if part)


def _figure(result: Result) -> str:
    row = Row(result=result)
    if result.max_batch_size is not None:
        return f"largest batch {result.max_batch_size}"
    if row.timed is not None:
        step_ms = median(row.timed.samples_ms)
        return f"{result.case.batch_size / step_ms * 1e3:.1f} img/s, {step_ms:.3f} ms"
    if result.parity is not None:
        return f"{result.parity.tensors} tensors, worst {result.parity.worst.tensor} {result.parity.worst.error:.2g}"
    return ""
