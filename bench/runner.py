"""Pending cases -> isolated workers -> journal: time-outs, crashes, budgets and resumed runs. Imports no torch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from time import monotonic
from traceback import format_exception
from typing import Any, Protocol

from bench import ceilings, maxbatch, turns
from bench.isolation import SERVING, WorkerCrashedError, WorkerTimeoutError, call, describe, started
from bench.journal import Journal, UnfitRecordError, read
from bench.report.text import count
from bench.rows import BASELINE, TIMED_STATUSES
from bench.types import (
    FINE,
    MARKS,
    Case,
    Ceilings,
    Cost,
    Environment,
    Plan,
    Precision,
    Reference,
    Result,
    Rounds,
    Run,
    Session,
    Status,
)
from resnet.paths import PATHS_BY_NAME

LOGS = "logs"  # in the run directory: what the workers of failed cases printed
SCRATCH = "scratch"  # in the run directory, while it runs: fp64 trajectories take gigabytes for a large cell

_SURVEY_TIMEOUT_S = 300.0
_KEPT_REFERENCES = 4  # cells whose fp64 trajectories stay on disk; a large one takes gigabytes


class Observer(Protocol):
    """Hears what the runner does while it does it: the terminal's progress, or a test."""

    def preparing(self, text: str) -> None:
        """What is done before the first case."""

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


def run(
    directory: Path,
    plan: Plan | None,
    *,
    observer: Observer,
    budget_s: float | None = None,
    again: frozenset[Status] = frozenset(),
    began: float | None = None,
) -> Run:
    """Run a plan in a new directory, or with `plan=None` go on with the one that its journal holds.

    Going on, what was never run comes first, then what failed, then what has one of the statuses `again`. Without
    `budget_s` a new run has the plan's own budget. It counts from `began` (of `time.monotonic`), by default from now.

    Ctrl-C and a spent budget end the run early, in the middle of a case if need be, with every finished case journaled;
    `Session.interrupted` of the returned run's last session says so.

    Raises:
        ValueError: the directory cannot be used, the cases are for several devices, or the weights do not fit the
            models; the message says what to do, and nothing is written.
        WorkerError: the device could not be surveyed.
    """
    began, started_at = monotonic() if began is None else began, _now()
    own_budget = budget_s is None and plan is not None and plan.budget_s is not None
    if plan is not None and own_budget:
        budget_s = plan.budget_s
    deadline = None if budget_s is None else began + budget_s
    if plan is not None:
        _check_plan(plan, deadline)
    with (
        Journal.create(directory, plan) if plan else Journal.resume(directory) as journal,
        _emptied(directory / SCRATCH) as scratch,
    ):
        if plan is None:
            _check_plan(journal.plan, deadline)  # the weights may be gone
        for notice in journal.notices:
            observer.notice(notice)
        interrupted, by_hand = "", False
        try:
            interrupted = _Sitting(journal, observer, scratch, deadline).run(again)
        except KeyboardInterrupt:
            interrupted, by_hand = "Ctrl-C", True
        except _BudgetSpentError:
            interrupted = "the budget was spent before the first case"
        if interrupted:
            observer.notice(f"stopped: {interrupted}")
        journal.append(
            Session(
                started_at=started_at,
                wall_s=monotonic() - began,
                interrupted=interrupted,
                as_planned=own_budget and bool(interrupted) and not by_hand,
            )
        )
    return read(directory)


class _BudgetSpentError(Exception):
    """The budget ended in the middle of what a worker did, which is left for `--resume`."""


class _Sitting:
    """One sitting over the pending cases of a journal."""

    def __init__(self, journal: Journal, observer: Observer, scratch: Path, deadline: float | None) -> None:
        self.journal, self.observer, self.scratch, self.deadline = journal, observer, scratch, deadline
        self.plan = journal.plan
        self.tools: Path | None = None  # what the compiler knows of this machine, once a case has needed it
        self.references: dict[_Cell, Reference] = {}
        self.timed_out: dict[tuple[object, ...], WorkerTimeoutError] = {}  # making what cases share
        self.took: list[tuple[str, float, int]] = []  # path, seconds and FLOPs a step of each case so far
        self.failed: set[str] = set()  # keys of cases that could not be timed in this sitting

    def run(self, again: frozenset[Status]) -> str:
        """Run what is pending, and what is to be measured again; why some is left, if it is."""
        device = self.plan.cases[0].device
        weights = self.plan.settings.weights
        self.environment: Environment = _ask(self.deadline, "survey", device, weights)
        self.journal.append(self.environment)
        for notice in self.journal.left_out(self.environment):
            self.observer.notice(notice)
        pending = self._pending(self.journal.statuses(self.environment.hash), again)
        if not pending:
            self.observer.started(self.plan, 0)
            return ""
        known = read(self.journal.directory)
        for result in known.results:
            self._learn(result.case, sum(result.phases_s.values()), result.cost)
        self.ceilings = known.ceilings or self._ceilings()
        inspected = self._inspected(pending)
        self.observer.started(self.plan, len(pending))
        settled = [self._settle(case, number, *inspected[case.key]) for number, case in enumerate(pending, start=1)]
        left = settled.count(False)
        return f"the budget is spent: {count(left, 'case')} left" if left else ""

    def _settle(self, case: Case, number: int, cost: Cost, missing: str) -> bool:
        """Give the case its row, or leave it where the budget does not suffice: whether it has one."""
        began = monotonic()
        if not missing and self.deadline is not None and began + self._expected_s(case, cost) > self.deadline:
            return False
        self.observer.case_started(case, number)
        try:
            result = Result(case=case, status=Status.UNSUPPORTED, reason=missing) if missing else self._result(case)
        except _BudgetSpentError:
            return False
        result = self._kept(
            replace(
                result,
                cost=cost if case.kind == "measure" else None,
                finished_at=_now(),
                environment_hash=self.environment.hash,
            )
        )
        if not missing:
            self._learn(case, monotonic() - began, cost)
        self.observer.case_finished(result)
        if result.status not in TIMED_STATUSES:
            self.failed.add(case.key)
        return True

    def _pending(self, statuses: Mapping[str, Status], again: frozenset[Status]) -> list[Case]:
        """What was never run, what failed, and what is to be measured again, each in the plan's order."""
        failed = frozenset(Status) - FINE - MARKS
        turns = ({None}, failed, again)
        return [case for turn in turns for case in self.plan.cases if statuses.get(case.key) in turn]

    def _inspected(self, cases: list[Case]) -> dict[str, tuple[Cost, str]]:
        """By key: the least work of each case, and why it is not run here; empty if it is."""
        inspected: dict[str, tuple[Cost, str]] = _ask(self.deadline, "inspect", tuple(cases))
        found = {case: inspected[case.key] for case in cases}
        return {case.key: (cost, missing or self._why_left_out(case)) for case, (cost, missing) in found.items()}

    def _why_left_out(self, case: Case) -> str:
        """A precision that is emulated can be checked all the same; its speed says nothing about a network."""
        if self.plan.emulated or case.kind == "parity":
            return ""
        return ceilings.why_emulated(case.precision, self.ceilings, case.device)

    def _limit_s(self) -> float:
        """How long a worker may take from now: the time of a stage, or what is left of the budget."""
        limit_s = self.plan.settings.timeout_s
        return limit_s if self.deadline is None else min(limit_s, max(0.0, self.deadline - monotonic()))

    def _ceilings(self) -> Ceilings:
        """Of this environment: once a machine, and once a run in its journal."""
        rates = ceilings.kept(self.environment)
        if rates is None:
            self.observer.preparing("measuring what this device reaches")
            measured: Ceilings = _ask(self.deadline, "ceilings", self.plan.cases[0].device)
            ceilings.keep(self.environment, measured)
            rates = measured
        self.journal.append(rates)
        return rates

    def _learn(self, case: Case, took_s: float, cost: Cost | None) -> None:
        """How long cases take, by path and by work."""
        if took_s:
            self.took.append((case.path, took_s, cost.flops if cost else 0))

    def _expected_s(self, case: Case, cost: Cost) -> float:
        """As long as the longest case of its path so far, or of all where it has none; longer for more work a step."""
        settings = self.plan.settings
        alike = [took for took in self.took if took[0] == case.path] or self.took
        times = (seconds * max(1.0, cost.flops / flops if flops else 1.0) for _, seconds, flops in alike)
        return max(times, default=settings.warmup_budget_s + settings.sample_budget_s)

    def _result(self, case: Case) -> Result:
        """The result of a case that can run here, whatever happens to its worker, or to us."""
        log = self._log(case)
        phases = _Phases(lambda phase: self.observer.phase(case, phase))
        try:
            log.parent.mkdir(exist_ok=True)
            result = _PROCEDURES[case.kind](self, case, log, phases)
            if result.status in FINE | MARKS:
                log.unlink(missing_ok=True)
        except WorkerTimeoutError as error:
            if _over(self.deadline):
                raise _BudgetSpentError from error
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

    def _check(self, case: Case, log: Path, phases: "_Phases") -> Result:
        """Kinds `measure` and `parity`: the reference first, in a process of its own."""
        settings = self.plan.settings
        against = self._reference(case, log, phases)
        tools = self._tools(case, log, phases)
        phases("start-up")
        baselines = self._baselines(case)
        arguments = (case, settings, against, tools, bool(baselines))
        with started("bench.worker:run_case", *arguments, log=log) as worker:
            answer = worker.answer(self._limit_s(), phases)
            taken: dict[str, Rounds] = {}
            note = ""
            if answer is SERVING:
                within = replace(settings, timeout_s=self._limit_s())
                taken, note = turns.compare(case, worker, baselines, within, phases)
                worker.dismiss()
                answer = worker.answer(self._limit_s(), phases)
        if not isinstance(answer, Result):
            raise TypeError(f"the worker answered with {type(answer).__name__}, which is no result")
        result = answer
        measured = result.measurement
        return replace(result, measurement=replace(measured, turns=taken, turns_note=note)) if measured else result

    def _baselines(self, case: Case) -> tuple[Case, ...]:
        """Eager at the case's precision and at fp32, where the plan has them; one that failed would fail again."""
        if case.kind != "measure":
            return ()
        precisions: tuple[Precision, ...] = (case.precision, "fp32")
        wanted = {replace(case, path=BASELINE, precision=precision) for precision in precisions}
        known = {known for known in self.plan.cases if known.key not in self.failed}
        return tuple(sorted(wanted & known - {case}, key=lambda baseline: baseline.key))

    def _reference(self, case: Case, log: Path, phases: "_Phases") -> Reference:
        """What the paths of a cell share."""
        settings = self.plan.settings
        cell = (case.model, case.mode, case.batch_size, case.image_size, case.precision)
        if cell not in self.references:
            with self._not_again(cell):
                self._forget_old_references()
                phases("reference")
                arguments = (case, settings, self.ceilings, self.scratch)
                self.references[cell] = call(
                    "bench.worker:prepare_reference", *arguments, timeout_s=self._limit_s(), log=log
                )
        return self.references[cell]

    def _tools(self, case: Case, log: Path, phases: "_Phases") -> Path | None:
        """What the compiler finds out once a machine, for a case that compiles: once a sitting."""
        if PATHS_BY_NAME[case.path].compile_mode is None:
            return None
        if self.tools is None:
            with self._not_again(("compiler",)):
                phases("compiler")
                tools = self.scratch / "compiler"
                call("bench.worker:prepare_compiler", case.device, tools, timeout_s=self._limit_s(), log=log)
                self.tools = tools
        return self.tools

    @contextmanager
    def _not_again(self, shared: tuple[object, ...]) -> Iterator[None]:
        """To make what cases share. If that timed out it is not tried again: each try would take as long."""
        if shared in self.timed_out:
            raise self.timed_out[shared]
        try:
            yield
        except WorkerTimeoutError as error:
            self.timed_out[shared] = error
            raise

    def _forget_old_references(self) -> None:
        """Make room on the disk: a trajectory that is asked for again is made again."""
        while len(self.references) >= _KEPT_REFERENCES:
            oldest = next(iter(self.references))
            files = self.references.pop(oldest).files
            kept = {file for reference in self.references.values() for file in reference.files}
            for file in set(files) - kept:
                Path(file).unlink(missing_ok=True)

    def _search_largest(self, case: Case, log: Path, phases: "_Phases") -> Result:
        """Kind `max-batch`: each batch size in a process of its own, so that none finds another's leavings."""
        settings = self.plan.settings
        tools = self._tools(case, log, phases)

        def fits(batch_size: int) -> bool:
            phases("search", f"batch {batch_size}")
            answer: bool = call(
                "bench.worker:fits",
                replace(case, batch_size=batch_size),
                settings,
                tools,
                timeout_s=self._limit_s(),
                log=log,
            )
            return answer

        size = maxbatch.largest(fits)
        if not size:
            return Result(case=case, status=Status.OOM, reason="not even a batch of 1 fits", max_batch_size=0)
        return Result(case=case, status=Status.VALID, max_batch_size=size)


class _Phases:
    """Tells the observer of each phase, and keeps its wall seconds."""

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


_Cell = tuple[object, ...]
_Procedure = Callable[[_Sitting, Case, Path, _Phases], Result]
_PROCEDURES: dict[str, _Procedure] = {
    "measure": _Sitting._check,
    "parity": _Sitting._check,
    "max-batch": _Sitting._search_largest,
}


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """A folder for this sitting alone: what a killed one left there goes as well."""
    rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        rmtree(folder, ignore_errors=True)


def _ask(deadline: float | None, entry: str, *arguments: object) -> Any:  # noqa: ANN401 - whatever the entry returns
    """What a worker says that runs before the first case; within the budget."""
    if _over(deadline):
        raise _BudgetSpentError
    limit_s = _SURVEY_TIMEOUT_S if deadline is None else min(_SURVEY_TIMEOUT_S, deadline - monotonic())
    try:
        return call(f"bench.worker:{entry}", *arguments, timeout_s=limit_s)
    except WorkerTimeoutError as error:
        if _over(deadline):
            raise _BudgetSpentError from error
        raise


def _over(deadline: float | None) -> bool:
    return deadline is not None and monotonic() >= deadline


def _crashed(case: Case, error: Exception, log: Path) -> Result:
    """The row of a case that failed on our side. Its log ends with the traceback."""
    with suppress(OSError), log.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(format_exception(error))
    return Result(case=case, status=Status.CRASHED, reason=f"{describe(error)}{_see(log)}")


def _see(log: Path) -> str:
    """Where to read on: relative to the run directory, which may be moved."""
    return f"; see {log.relative_to(log.parents[1])}" if log.exists() else ""


def _check_plan(plan: Plan, deadline: float | None) -> None:
    """Refuse what cannot be run; loading the weights takes torch, hence a worker."""
    devices = sorted({case.device for case in plan.cases})
    if len(devices) != 1:  # figures of one run are compared, and that takes one device
        raise ValueError(
            f"a run is for one device, and this plan is for {' and '.join(devices) or 'none'}: pass --device"
        )
    if plan.settings.weights:
        models = tuple(dict.fromkeys(case.model for case in plan.cases))
        with suppress(_BudgetSpentError):  # what needs the weights will not be run either
            if problem := _ask(deadline, "weights_problem", models, plan.settings.weights):
                raise ValueError(problem)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
