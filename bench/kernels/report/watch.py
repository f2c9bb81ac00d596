"""The display of the terminal while kernels are measured: a bar, and a line for each finished op."""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from bench.kernels.types import Contender, KernelRow, Op, Outcome
from bench.terminal.progress import bar
from bench.terminal.wrapped import say

SHOWN: tuple[Contender, ...] = ("fused", "eager", "compile")


class Watch:
    """The bar and the lines; off a terminal the lines alone."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress
        self._task = progress.add_task("starting", total=None)
        self._finished, self._total = 0, 0

    def phase(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def begin(self, text: str, total: int) -> None:
        self._total = total
        self._progress.update(self._task, total=total)
        self.line(Text(text))

    def started(self, op: Op) -> None:
        self.phase(op.key)

    def finished(self, outcome: Outcome) -> None:
        self._finished += 1
        self._progress.update(self._task, completed=self._finished)
        word, style = _verdict(outcome)
        width = len(str(self._total))
        self.line(
            Text.assemble(
                f"[{self._finished:>{width}}/{self._total}] ",
                (f"{word:<13}", style),
                f"  {outcome.op.key}  {_figures(outcome)}  ({outcome.seconds:.1f} s)",
            )
        )

    def line(self, text: Text) -> None:
        say(self._console, text, indent=8)


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """A watch whose bar is gone at the end."""
    with bar(console) as progress:
        yield Watch(console, progress)


def _verdict(outcome: Outcome) -> tuple[str, str]:
    if outcome.wrong:
        return "parity-failed", "bold red"
    return ("failed", "red") if outcome.failed else ("parity ok", "green")


def _figures(outcome: Outcome) -> str:
    """Median times of the whole calls, or what went wrong."""
    if outcome.failure:
        return outcome.failure
    if outcome.wrong and outcome.check is not None:
        worst = outcome.check.worst
        return (
            f"{worst.tensor}: error {worst.error:.2g}, allowed {worst.tolerance:.2g}, eager's {worst.eager_error:.2g}"
        )
    return "; ".join(_times(row) for row in outcome.rows if not row.launch)


def _times(row: KernelRow) -> str:
    shown = [f"{name} {median(row.samples_ms(name)):.3g}" for name in SHOWN if row.rounds.get(name)]
    failed = [f"{name} failed" for name in row.failures]
    return f"{row.direction} {', '.join([*shown, *failed])} ms"
