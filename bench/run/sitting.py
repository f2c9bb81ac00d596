"""One sitting over the pending cases of a journal: what is to be run, and a row for each case. Imports no torch."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from traceback import format_exception

from bench.machine import kept_ceilings
from bench.record.journal import Journal, read
from bench.record.lines import UnfitRecordError
from bench.record.rows import BASELINE, TIMED_STATUSES
from bench.render.text import count
from bench.run import against_eager, max_batch
from bench.run.budget import Budget, BudgetSpentError
from bench.run.phases import Observer, Phases
from bench.run.remote import worker
from bench.run.shared import Shared
from bench.types import (
    FINE,
    MARKS,
    Case,
    Ceilings,
    Cost,
    Environment,
    Plan,
    Precision,
    Result,
    Rounds,
    Status,
)
from bench.workers.child import Serving
from bench.workers.errors import WorkerCrashedError, WorkerTimeoutError, describe
from bench.workers.parent import Terms

LOGS = "logs"  # in the run directory: what the workers of failed cases printed


def sit(journal: Journal, observer: Observer, scratch: Path, budget: Budget, again: frozenset[Status]) -> str:
    """Run the journal's pending cases, and those to be measured again; returns why some are left, if they are.

    Raises:
        BudgetSpentError: before the first case.
        WorkerError: the device could not be surveyed.
    """
    plan = journal.plan
    environment = budget.ask(worker.survey, plan.cases[0].device, plan.settings.weights)
    journal.append(environment)
    for notice in journal.left_out(environment):
        observer.notice(notice)
    pending = _pending(plan, journal.statuses(environment.hash), again)
    if not pending:
        observer.started(plan, 0)
        return ""
    earlier = read(journal.directory)
    for result in earlier.results:
        budget.learn(result.case, sum(result.phases_s.values()), result.cost)
    rates = earlier.ceilings or _ceilings(journal, environment, observer, budget)
    shared = Shared(plan.settings, rates, scratch, budget)
    return Sitting(journal, observer, environment, rates, shared, budget).run(pending)


def _pending(plan: Plan, statuses: Mapping[str, Status], again: frozenset[Status]) -> list[Case]:
    """The cases never run, those that failed, and those to be measured again, each in the plan's order."""
    failed = frozenset(Status) - FINE - MARKS
    groups = ({None}, failed, again)
    return [case for group in groups for case in plan.cases if statuses.get(case.key) in group]


def _ceilings(journal: Journal, environment: Environment, observer: Observer, budget: Budget) -> Ceilings:
    """The rates of the device: measured once a machine, and noted once a run in its journal."""
    kept = kept_ceilings.kept(environment)
    observer.preparing("measuring what this device reaches")
    rates = budget.ask(worker.ceilings, journal.plan.cases[0].device, kept)
    if rates != kept:
        kept_ceilings.keep(environment, rates)
    journal.append(rates)
    return rates


class Sitting:
    """One sitting over the pending cases of a journal."""

    def __init__(
        self,
        journal: Journal,
        observer: Observer,
        environment: Environment,
        ceilings: Ceilings,
        shared: Shared,
        budget: Budget,
    ) -> None:
        self.journal, self.observer, self.shared, self.budget = journal, observer, shared, budget
        self.environment, self.ceilings = environment, ceilings
        self.plan = journal.plan
        self.failed: set[str] = set()  # keys of cases that could not be timed in this sitting

    def run(self, pending: list[Case]) -> str:
        """Run the cases in their order; returns why some are left, if they are."""
        inspected = self._inspected(pending)
        self.observer.started(self.plan, len(pending))
        settled = [self._settle(case, number, *inspected[case.key]) for number, case in enumerate(pending, start=1)]
        left = settled.count(False)
        return f"the budget is spent: {count(left, 'case')} left" if left else ""

    def _settle(self, case: Case, number: int, cost: Cost, missing: str) -> bool:
        """Give the case its row, or leave it where the budget does not suffice: whether it has one."""
        if not missing and not self.budget.suffices(case, cost, self.plan.settings):
            return False
        began = monotonic()
        self.observer.case_started(case, number)
        try:
            result = Result(case=case, status=Status.UNSUPPORTED, reason=missing) if missing else self._result(case)
        except BudgetSpentError:
            return False
        result = self._kept(
            replace(
                result,
                cost=cost if case.kind == "measure" else None,
                finished_at=now(),
                environment_hash=self.environment.hash,
            )
        )
        if not missing:
            self.budget.learn(case, monotonic() - began, cost)
        self.observer.case_finished(result)
        if result.status not in TIMED_STATUSES:
            self.failed.add(case.key)
        return True

    def _inspected(self, cases: list[Case]) -> dict[str, tuple[Cost, str]]:
        """The least work of each case, by its key, and why it is not run here; empty if it is."""
        inspected = self.budget.ask(worker.inspect, tuple(cases))
        by_case = {case: inspected[case.key] for case in cases}
        return {case.key: (cost, missing or self._why_left_out(case)) for case, (cost, missing) in by_case.items()}

    def _why_left_out(self, case: Case) -> str:
        """A precision that is emulated can be checked all the same; its speed says nothing about a network."""
        if self.plan.emulated or case.kind == "parity":
            return ""
        return kept_ceilings.why_emulated(case.precision, self.ceilings, case.device)

    def _result(self, case: Case) -> Result:
        """The result of a case that can run here, whatever happens to its worker, or to us."""
        log = self._log(case)
        phases = Phases(lambda phase: self.observer.phase(case, phase))
        try:
            log.parent.mkdir(exist_ok=True)
            result = _PROCEDURES[case.kind](self, case, log, phases)
            if result.status in FINE | MARKS:
                log.unlink(missing_ok=True)
        except WorkerTimeoutError as error:
            if self.budget.spent:
                raise BudgetSpentError from error
            result = Result(case=case, status=Status.TIMEOUT, reason=f"{error}{_see(log)}")
        except WorkerCrashedError as error:
            result = Result(case=case, status=Status.CRASHED, reason=f"{error}{_see(log)}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs this case alone
            result = _crashed(case, error, log)
        phases.end()
        return replace(result, phases_s={**phases.took_s, **result.phases_s})  # the worker's own clock where it has one

    def _log(self, case: Case) -> Path:
        return self.journal.directory / LOGS / f"{case.key}.log"

    def _kept(self, result: Result) -> Result:
        """The result, now in the journal; one that cannot be is a crash."""
        try:
            self.journal.append(result)
        except UnfitRecordError as error:
            crash = _crashed(result.case, error, self._log(result.case))
            result = replace(
                crash, cost=result.cost, finished_at=result.finished_at, environment_hash=result.environment_hash
            )
            self.journal.append(result)
        return result

    def _check(self, case: Case, log: Path, phases: Phases) -> Result:
        """Kinds `measure` and `parity`: the reference first, in a process of its own."""
        settings = self.plan.settings
        against = self.shared.reference(case, log, phases)
        tools = self.shared.tools(case, log, phases)
        phases("start-up")
        baselines = self._baselines(case)
        taken: dict[str, Rounds] = {}
        note = ""
        with self._terms(log).started(worker.run_case, case, settings, against, tools, bool(baselines)) as child:
            result = child.answer_or_serving(self._limit_s(), phases)
            if isinstance(result, Serving):
                within = replace(settings, timeout_s=self._limit_s())
                taken, note = against_eager.compare(case, child, baselines, within, phases)
                child.dismiss()
                result = child.answer(self._limit_s(), phases)
        measured = result.measurement
        return replace(result, measurement=replace(measured, turns=taken, turns_note=note)) if measured else result

    def _baselines(self, case: Case) -> tuple[Case, ...]:
        """Eager at the case's precision and at fp32, where the plan has them; one that failed would fail again."""
        if case.kind != "measure":
            return ()
        precisions: tuple[Precision, ...] = (case.precision, "fp32")
        baselines = {replace(case, path=BASELINE, precision=precision) for precision in precisions}
        timeable = {other for other in self.plan.cases if other.key not in self.failed}
        return tuple(sorted(baselines & timeable - {case}, key=lambda baseline: baseline.key))

    def _limit_s(self) -> float:
        return self.budget.limit_s(self.plan.settings.timeout_s)

    def _terms(self, log: Path) -> Terms:
        return Terms(timeout_s=self._limit_s(), log=log)

    def _search_largest(self, case: Case, log: Path, phases: Phases) -> Result:
        """Kind `max-batch`: each batch size in a process of its own, so that none finds another's leavings."""
        settings = self.plan.settings
        tools = self.shared.tools(case, log, phases)

        def fits(batch_size: int) -> bool:
            phases("search", f"batch {batch_size}")
            return self._terms(log).call(worker.fits, replace(case, batch_size=batch_size), settings, tools)

        size = max_batch.largest(fits)
        if not size:
            return Result(case=case, status=Status.OOM, reason="not even a batch of 1 fits", max_batch_size=0)
        return Result(case=case, status=Status.VALID, max_batch_size=size)


_Procedure = Callable[[Sitting, Case, Path, Phases], Result]
_PROCEDURES: dict[str, _Procedure] = {
    "measure": Sitting._check,
    "parity": Sitting._check,
    "max-batch": Sitting._search_largest,
}


def _crashed(case: Case, error: Exception, log: Path) -> Result:
    """The row of a case that failed on our side. Its log ends with the traceback."""
    with suppress(OSError), log.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(format_exception(error))
    return Result(case=case, status=Status.CRASHED, reason=f"{describe(error)}{_see(log)}")


def _see(log: Path) -> str:
    """The log to read, relative to the run directory, which may be moved."""
    return f"; see {log.relative_to(log.parents[1])}" if log.exists() else ""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
