"""The display of the terminal while a run is going on: progress with the time left, and a line for each finished case.

Off a terminal (a pipe, a log file) there are no bars and no control codes, only one line a case.
"""

from dataclasses import replace
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.text import Text

from bench.run.report.case_line import CaseLines
from bench.terminal.progress import bar
from bench.terminal.wrapped import say
from bench.types import Case, Plan, Result, Status


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
        """The result; on a terminal a reason that many cases share is given only once."""
        if result.status is not Status.UNSUPPORTED or not self._console.is_terminal:
            return result
        known = result.reason in self._reasons
        self._reasons.add(result.reason)
        return replace(result, reason="as above") if known else result
