"""A run that ends within a budget, and what is left of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.types import Case, Environment, Result, Settings, Status
from bench.workers.entry import Entry
from bench.workers.errors import WorkerTimeoutError
from bench.workers.parent import Terms
from tests.support.made_up_workers import (
    CASES,
    COST,
    Workers,
    plan,
    sit,
    statuses,
)
from tests.support.synthetic_runs import result


def test_budget_stops_before_it_is_spent_and_resume_goes_on(workers: Workers, directory: Path) -> None:
    workers.takes_s = 10.0
    run, heard = sit(directory, plan(warmup_budget_s=5.0, sample_budget_s=5.0), budget_s=25.0)
    assert statuses(run) == ["eager valid", "channels_last valid"], "12 s and 10 s; a third would end after 32 s"
    assert [case.path for case in run.pending] == ["compile"]
    assert run.sessions[-1].interrupted == "the budget is spent: 1 case left"
    assert heard[-1] == "notice stopped: the budget is spent: 1 case left"
    assert run.sessions[-1].wall_s <= 25.0
    run, heard = sit(directory, None)
    assert statuses(run) == ["eager valid", "channels_last valid", "compile valid"]
    assert workers.paths_run() == ["eager", "channels_last", "compile"], "none twice"
    assert heard[0] == "started made-up 1"
    assert [session.interrupted for session in run.sessions] == ["the budget is spent: 1 case left", ""]
    assert workers.names().count("ceilings") == 1


def test_budget_ends_in_the_middle_of_a_case_that_takes_longer_than_expected(workers: Workers, directory: Path) -> None:
    """It is left as if it had not been started."""
    left = "the budget is spent: 3 cases left"

    def hang(case: Case) -> Result:
        workers.now_s += workers.limits[-1]
        raise WorkerTimeoutError(f"no result from {case.path}")

    workers.measure = hang
    run, heard = sit(directory, plan(warmup_budget_s=5.0, sample_budget_s=5.0), budget_s=25.0)
    assert workers.limits == [25.0, 23.0], "the reference, which takes 2 s, and the case"
    assert (run.results, len(run.pending), run.sessions[-1].interrupted) == ((), 3, left)
    assert heard[-1] == f"notice stopped: {left}"
    run, _ = sit(directory, None)
    assert {row.status for row in run.results} == {Status.TIMEOUT}, "without a budget it is a result"
    assert workers.limits[-1] == Settings().timeout_s


@pytest.mark.parametrize("entry", ["require_weights", "survey", "ceilings", "inspect"])
@pytest.mark.parametrize("hangs", [True, False])
def test_budget_that_is_spent_before_the_first_case_interrupts_the_run(
    workers: Workers, directory: Path, monkeypatch: pytest.MonkeyPatch, entry: str, hangs: bool
) -> None:
    right = getattr(workers, f"_{entry}")

    def slow(*arguments: object) -> object:
        workers.now_s += 10.0
        if hangs:
            raise WorkerTimeoutError("no result within 10 s, during start-up")
        return right(*arguments)

    monkeypatch.setattr(workers, f"_{entry}", slow)
    run, heard = sit(directory, plan(weights="w.pt", warmup_budget_s=1.0, sample_budget_s=1.0), budget_s=10.0)
    assert (run.results, len(run.pending)) == ((), 3)
    assert run.sessions[-1].interrupted.startswith("the budget ")
    assert heard[-1].startswith("notice stopped: the budget ")
    assert workers.names()[-1] == entry, "nothing is begun after it"
    monkeypatch.setattr(workers, f"_{entry}", right)
    run, _ = sit(directory, None)
    assert statuses(run) == ["eager valid", "channels_last valid", "compile valid"]


def test_calls_before_the_first_case_get_what_is_left_of_the_budget(
    workers: Workers, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def call(terms: Terms, entry: Entry, *arguments: object) -> object:
        if entry.function in ("survey", "ceilings", "inspect"):
            limits.append(terms.timeout_s)
            workers.now_s += 2.0
        return Workers.call(workers, terms, entry, *arguments)

    monkeypatch.setattr(workers, "call", call)
    sit(directory, plan(), budget_s=25.0)
    sit(directory.with_name("another"), plan())
    assert limits == [25.0, 23.0, 21.0, 300.0, 300.0, 300.0]


def test_survey_that_hangs_without_a_budget_is_told(
    workers: Workers, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: str) -> Environment:
        raise WorkerTimeoutError("no result within 300 s, during start-up")

    monkeypatch.setattr(workers, "_survey", hang)
    with pytest.raises(WorkerTimeoutError, match="300 s"):
        sit(directory, plan())


def test_baselines_end_with_the_budget_too(workers: Workers, directory: Path) -> None:
    sit(directory, plan(CASES[0], CASES[1], warmup_budget_s=1.0, sample_budget_s=1.0), budget_s=25.0)
    assert workers.baselines.keys() == {CASES[1].key}
    assert workers.limits == [25.0, 23.0, *3 * [23.0]], "reference, eager; then a case, its baselines and its end"


def test_a_resumed_run_knows_how_long_cases_took(workers: Workers, directory: Path) -> None:
    def measure(case: Case) -> Result:
        if case.path == "channels_last":
            raise KeyboardInterrupt
        return result(case, phases_s={"first call": 300.0})

    workers.measure = measure
    sit(directory, plan())
    run, _ = sit(directory, None, budget_s=299.0)
    assert run.sessions[-1].interrupted == "the budget is spent: 2 cases left"
    assert workers.paths_run() == ["eager", "channels_last"], "none in the second sitting"


@pytest.mark.usefixtures("workers")
def test_budget_too_short_for_any_case_runs_none(directory: Path) -> None:
    run, _ = sit(directory, plan(warmup_budget_s=5.0, sample_budget_s=5.0), budget_s=9.0)
    assert (run.results, len(run.pending)) == ((), 3)


def test_budget_does_not_stop_rows_that_take_no_time(workers: Workers, directory: Path) -> None:
    workers.missing = {"eager": "needs luck"}
    run, _ = sit(directory, plan(), budget_s=1.0)
    assert statuses(run) == ["eager unsupported"]


def test_a_case_that_does_not_fit_the_budget_makes_way_for_those_that_do(workers: Workers, directory: Path) -> None:
    """By the work of a step: eager took 12 s, and channels_last has five times as much of it."""
    workers.takes_s = 10.0
    workers.costs = {CASES[1].key: replace(COST, flops=5 * COST.flops)}
    run, _ = sit(directory, plan(warmup_budget_s=1.0, sample_budget_s=1.0), budget_s=40.0)
    assert statuses(run) == ["eager valid", "compile valid"]
    assert run.sessions[-1].interrupted == "the budget is spent: 1 case left"


def test_the_plan_s_own_budget_ends_a_new_run_as_planned(workers: Workers, directory: Path) -> None:
    workers.takes_s = 10.0
    made = replace(plan(warmup_budget_s=1.0, sample_budget_s=1.0), budget_s=25.0)
    run, _ = sit(directory, made)
    assert (len(run.results), run.left_out_as_planned) == (2, True)
    assert run.sessions[-1].interrupted == "the budget is spent: 1 case left"
    run, _ = sit(directory, None)
    assert (len(run.results), run.left_out_as_planned) == (3, False), "without --budget the rest has all the time"


def test_a_budget_that_was_asked_for_replaces_the_plan_s_and_does_not_end_as_planned(
    workers: Workers, directory: Path
) -> None:
    workers.takes_s = 10.0
    made = replace(plan(warmup_budget_s=1.0, sample_budget_s=1.0), budget_s=1000.0)
    run, _ = sit(directory, made, budget_s=25.0)
    assert (len(run.results), run.left_out_as_planned) == (2, False)


@pytest.mark.usefixtures("workers")
def test_a_plan_whose_budget_is_too_short_for_anything_has_failed(directory: Path) -> None:
    run, _ = sit(directory, replace(plan(warmup_budget_s=5.0, sample_budget_s=5.0), budget_s=9.0))
    assert (run.sessions[-1].as_planned, run.left_out_as_planned) == (True, False)


def test_the_budget_counts_from_where_the_command_began(workers: Workers, directory: Path) -> None:
    workers.takes_s = 10.0
    made = plan(warmup_budget_s=1.0, sample_budget_s=1.0)
    run, _ = sit(directory, made, budget_s=25.0, began=workers.now_s - 5.0)
    assert [result.case.path for result in run.results] == ["eager"], "5 s were gone, eager took 12"
    assert run.sessions[-1].wall_s == pytest.approx(17.0)
