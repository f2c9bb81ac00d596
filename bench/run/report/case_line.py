"""The line of a finished case: on a terminal by what tells the case apart, else by its key, and always as one line."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

from rich.console import Console
from rich.text import Text

from bench.record.rows import Row
from bench.sweep import cell
from bench.terminal.sheet import Axis
from bench.terminal.tables import STYLES
from bench.terminal.wrapped import say
from bench.types import Case, Result, Status

_STATUS_WIDTH = max(len(status) for status in Status)
_FIGURES_WIDTH = len("  12345.6 img/s, 12345.678 ms  (123.4 s)")
_INDENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseLines:
    """The names and lines of a run's cases on a console."""

    console: Console
    apart: Sequence[Axis] | None = None  # None: cases go by their keys
    shared: str = ""  # what the names leave out
    brief: bool = False  # without the time of a step beside img/s

    @classmethod
    def of(cls, cases: Sequence[Case], console: Console) -> Self:
        """The lines for the cases of a plan."""
        if not console.is_terminal:
            return cls(console=console)
        apart = cell.varying(cases)
        longest = max((len(cell.name(case, apart)) for case in cases), default=0)
        width = len(_place(len(cases), len(cases))) + _STATUS_WIDTH + longest + _FIGURES_WIDTH
        return cls(console=console, apart=apart, shared=cell.common(cases), brief=width + 2 > console.width)

    def name(self, case: Case) -> str:
        return case.key if self.apart is None else cell.name(case, self.apart)

    def say(self, result: Result, finished: int, pending: int) -> None:
        """Print what came out: its speed, its largest batch or its parity, and its reason."""
        figure, reason = _figure(result, brief=self.brief), " ".join(result.reason.split())
        took = f"({sum(result.phases_s.values()):.1f} s)"
        status = (f"{result.status:<{_STATUS_WIDTH}}", STYLES[result.status])
        head = Text.assemble(_place(finished, pending), status, f"  {self.name(result.case)}  ")
        line = head + f"{', '.join(filter(None, (figure, reason)))}  {took}"
        if len(line) <= self.console.width or not self.console.is_terminal:
            say(self.console, line)
            return
        say(self.console, head + "  ".join(filter(None, (figure, took))), indent=_INDENT)
        if reason:
            say(self.console, Text(" " * _INDENT + reason, "dim"), indent=_INDENT)


def _place(finished: int, pending: int) -> str:
    return f"[{finished:>{len(str(pending))}}/{pending}] "


def _figure(result: Result, *, brief: bool) -> str:
    row = Row(result=result)
    if result.max_batch_size is not None:
        return f"largest batch {result.max_batch_size}"
    if row.timed is not None:
        step_ms = median(row.timed.samples_ms)
        speed = f"{result.case.batch_size / step_ms * 1e3:.1f} img/s"
        return speed if brief else f"{speed}, {step_ms:.3f} ms"
    if result.parity is not None:
        worst = result.parity.worst
        return f"{result.parity.tensors} tensors, worst {'error' if brief else worst.tensor} {worst.error:.2g}"
    return ""
