"""The time that a sitting may take, and what cases are expected to take of it. Imports no torch."""

from collections.abc import Callable
from time import monotonic
from typing import ParamSpec, TypeVar

from bench.types import Case, Cost, Settings
from bench.workers.errors import WorkerTimeoutError
from bench.workers.parent import Terms

_SURVEY_TIMEOUT_S = 300.0

P = ParamSpec("P")
R = TypeVar("R")


class BudgetSpentError(Exception):
    """The budget ended in the middle of what a worker did, which is left for `--resume`."""


class Budget:
    """The time until a deadline (of `time.monotonic`), or all the time there is."""

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self._took: list[tuple[str, float, int]] = []  # path, seconds and FLOPs a step of each case so far

    @property
    def spent(self) -> bool:
        return self.deadline is not None and monotonic() >= self.deadline

    def limit_s(self, stage_s: float) -> float:
        """The seconds that a worker may take from now: those of a stage, or those that are left."""
        return stage_s if self.deadline is None else min(stage_s, max(0.0, self.deadline - monotonic()))

    def ask(self, entry: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        """The answer of a worker that runs before the first case.

        Raises:
            BudgetSpentError: there is no time for it.
            WorkerError: it gives no answer.
        """
        if self.spent:
            raise BudgetSpentError
        try:
            return Terms(timeout_s=self.limit_s(_SURVEY_TIMEOUT_S)).call(entry, *arguments, **named)
        except WorkerTimeoutError as error:
            if self.spent:
                raise BudgetSpentError from error
            raise

    def learn(self, case: Case, took_s: float, cost: Cost | None) -> None:
        """Learn how long cases take, by path and by work."""
        if took_s:
            self._took.append((case.path, took_s, cost.flops if cost else 0))

    def suffices(self, case: Case, cost: Cost, settings: Settings) -> bool:
        """Whether a case is expected to end in time."""
        return self.deadline is None or monotonic() + self._expected_s(case, cost, settings) <= self.deadline

    def _expected_s(self, case: Case, cost: Cost, settings: Settings) -> float:
        """The time of the longest case of its path so far, or of all where it has none; more for more work a step."""
        alike = [took for took in self._took if took[0] == case.path] or self._took
        times = (seconds * max(1.0, cost.flops / flops if flops else 1.0) for _, seconds, flops in alike)
        return max(times, default=settings.warmup_budget_s + settings.sample_budget_s)
