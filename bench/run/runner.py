"""Runs a plan, or goes on with one: the run directory, its journal, budgets and Ctrl-C. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from time import monotonic

from bench.record.journal import Journal, read
from bench.run.budget import Budget, BudgetSpentError
from bench.run.phases import Observer
from bench.run.remote import worker
from bench.run.sitting import now, sit
from bench.types import Plan, Run, Session, Status

SCRATCH = "scratch"  # in the run directory, while it runs: fp64 trajectories take gigabytes for a large cell


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
    began, started_at = monotonic() if began is None else began, now()
    own_budget = budget_s is None and plan is not None and plan.budget_s is not None
    if plan is not None and own_budget:
        budget_s = plan.budget_s
    budget = Budget(None if budget_s is None else began + budget_s)
    if plan is not None:
        _check_plan(plan, budget)
    with (
        Journal.create(directory, plan) if plan else Journal.resume(directory) as journal,
        _emptied(directory / SCRATCH) as scratch,
    ):
        if plan is None:
            _check_plan(journal.plan, budget)  # the weights may be gone
        for notice in journal.notices:
            observer.notice(notice)
        interrupted, by_hand = "", False
        try:
            interrupted = sit(journal, observer, scratch, budget, again)
        except KeyboardInterrupt:
            interrupted, by_hand = "Ctrl-C", True
        except BudgetSpentError:
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


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """A folder for this sitting alone: what a killed one left there goes as well."""
    rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        rmtree(folder, ignore_errors=True)


def _check_plan(plan: Plan, budget: Budget) -> None:
    """Refuse what cannot be run; loading the weights takes torch, hence a worker."""
    devices = sorted({case.device for case in plan.cases})
    if len(devices) != 1:  # figures of one run are compared, and that takes one device
        raise ValueError(
            f"a run is for one device, and this plan is for {' and '.join(devices) or 'none'}: pass --device"
        )
    if plan.settings.weights:
        models = tuple(dict.fromkeys(case.model for case in plan.cases))
        with suppress(BudgetSpentError):  # what needs the weights will not be run either
            budget.ask(worker.require_weights, models, plan.settings.weights)
