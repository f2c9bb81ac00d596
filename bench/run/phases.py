"""The progress of a run, as observers hear of it, and the wall seconds of each phase of a case. Imports no torch."""

from collections.abc import Callable
from time import monotonic
from typing import Protocol

from bench.types import Case, Plan, Result


class Observer(Protocol):
    """Hears what the runner does while it does it: the terminal's progress, or a test."""

    def preparing(self, text: str) -> None:
        """The work that comes before the first case, in words."""

    def started(self, plan: Plan, pending: int) -> None:
        """`pending` of the plan's cases are about to run."""

    def notice(self, text: str) -> None:
        """Something a person should read: a torn line dropped, a budget reached."""

    def case_started(self, case: Case, number: int) -> None:
        """The `number`-th pending case, from 1."""

    def phase(self, case: Case, phase: str) -> None:
        """The case's worker has entered this phase."""

    def case_finished(self, result: Result) -> None:
        """The result is in the journal."""


class Phases:
    """Tells of each phase of a case, and keeps its wall seconds."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.took_s: dict[str, float] = {}
        self.current, self.since = "", monotonic()

    def __call__(self, phase: str, step: str = "") -> None:
        """The next phase, or the next `step` of one."""
        self.end()
        self.current = phase
        self.tell(step or phase)

    def end(self) -> None:
        now = monotonic()
        if self.current:
            self.took_s[self.current] = self.took_s.get(self.current, 0.0) + now - self.since
        self.current, self.since = "", now
