"""The sweep over workers that a test makes up, and once over real ones."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest

from bench.record.journal import Journal, read
from bench.record.lines import JournalRecord
from bench.run import runner
from bench.types import Case, Environment, Plan, Result, Settings, Status
from bench.workers.entry import Entry
from bench.workers.errors import WorkerCrashedError, WorkerTimeoutError
from bench.workers.parent import Terms
from tests.support.made_up_workers import (
    CASES,
    COST,
    CPU_CASE,
    PATHS,
    Observer,
    TalkingWorker,
    Workers,
    plan,
    sit,
    statuses,
)
from tests.support.synthetic_runs import CASE, CEILINGS, ENVIRONMENT, failed, result

# --- order, rows and what is heard ------------------------------------------------------------------------------------


def test_plan_is_run_in_its_order_and_heard_of(workers: Workers, directory: Path) -> None:
    cases = (CASES[2], CASES[0], CASES[1])
    run, heard = sit(directory, plan(*cases))
    assert workers.paths_run() == ["compile", "eager", "channels_last"]
    assert statuses(run) == ["compile valid", "eager valid", "channels_last valid"]
    assert heard[:8] == [
        "preparing measuring what this device reaches", "started made-up 3", "case 1 compile",
        "phase compile reference", "phase compile compiler",
        "phase compile start-up", "phase compile build", "finished compile valid",
    ]  # fmt: skip
    assert run.pending == ()
    assert run.environment == ENVIRONMENT
    assert run.ceilings == CEILINGS
    assert (run.sessions[-1].interrupted, run.sessions[-1].wall_s) == ("", 2.0)


def test_rows_carry_cost_environment_and_time(workers: Workers, directory: Path) -> None:
    workers.measure = lambda case: replace(result(case), cost=None, environment_hash="", finished_at="")
    run, _ = sit(directory, plan())
    for row in run.results:
        assert (row.cost, row.environment_hash) == (COST, ENVIRONMENT.hash)
        assert row.finished_at.endswith("+00:00")


def test_unsupported_case_is_a_row_without_a_worker(workers: Workers, directory: Path) -> None:
    workers.missing = {"eager": "needs luck"}
    run, heard = sit(directory, plan())
    assert statuses(run) == ["eager unsupported", "channels_last valid", "compile valid"]
    assert (run.results[0].reason, run.results[0].cost) == ("needs luck", COST)
    assert workers.paths_run() == ["channels_last", "compile"]
    assert "case 1 eager" in heard
    assert "finished eager unsupported" in heard


FAILURES: dict[str, tuple[Exception, Status]] = {
    "crash": (WorkerCrashedError("SIGSEGV during sampling"), Status.CRASHED),
    "hang": (WorkerTimeoutError("no result within 600 s, during first call"), Status.TIMEOUT),
}


@pytest.mark.parametrize(
    ("what", "entry"), [*((what, "_run_case") for what in FAILURES), ("crash", "_prepare_reference")]
)
def test_worker_that_fails_costs_one_case(
    workers: Workers, directory: Path, monkeypatch: pytest.MonkeyPatch, what: str, entry: str
) -> None:
    error, status = FAILURES[what]
    right = getattr(workers, entry)

    def fail(case: Case, *rest: object) -> object:
        if case.path == "channels_last" or entry == "_prepare_reference":
            monkeypatch.setattr(workers, entry, right)
            raise error
        return right(case, *rest)

    monkeypatch.setattr(workers, entry, fail)
    run, _ = sit(directory, plan())
    hit = "channels_last" if entry == "_run_case" else "eager"
    assert statuses(run) == [f"{path} {status if path == hit else 'valid'}" for path in PATHS]
    (row,) = (row for row in run.results if row.case.path == hit)
    reason = f"{error}; see logs/{row.case.key}.log"
    assert (row.reason, row.measurement, row.cost) == (reason, None, COST)
    assert (directory / "logs" / f"{row.case.key}.log").is_file()


def not_a_number(case: Case) -> Result:
    return replace(result(case), phases_s={"build": nan})


def not_json(case: Case) -> Result:
    return replace(result(case), phases_s={"build": 1j})  # type: ignore[dict-item]


def a_bug(_: Case) -> Result:
    raise ZeroDivisionError("division by zero\nand a second line")


def no_file(_: Case) -> Result:
    raise PermissionError(13, "Permission denied", "somewhere")


def no_memory(_: Case) -> Result:
    raise MemoryError


MISTAKES: dict[Callable[[Case], Result], str] = {
    a_bug: "ZeroDivisionError: division by zero",
    no_file: "PermissionError: [Errno 13] Permission denied: 'somewhere'",
    no_memory: "MemoryError",
    not_a_number: "UnfitRecordError: phases_s.build: NaN is not a result; store an infinity, or nothing",
    not_json: "UnfitRecordError: Result: Encoding objects of type complex is unsupported",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_any_exception_in_a_case_is_its_row(
    workers: Workers, directory: Path, mistake: Callable[[Case], Result]
) -> None:
    workers.measure = lambda case: mistake(case) if case.path == "channels_last" else result(case)
    run, heard = sit(directory, plan())
    assert statuses(run) == ["eager valid", "channels_last crashed", "compile valid"]
    row, log = run.results[1], f"logs/{CASES[1].key}.log"
    assert row.reason == f"{MISTAKES[mistake]}; see {log}"
    assert (row.cost, row.environment_hash, bool(row.finished_at)) == (COST, ENVIRONMENT.hash, True)
    said = (directory / log).read_text()
    assert "Traceback (most recent call last)" in said
    assert "finished channels_last crashed" in heard


@pytest.mark.usefixtures("workers")
def test_a_log_that_cannot_be_removed_costs_its_case(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    run, _ = sit(directory, plan())
    assert statuses(run) == [f"{path} crashed" for path in PATHS]
    assert run.results[0].reason.startswith("PermissionError: [Errno 13] Permission denied; see logs/")


def test_a_full_disk_ends_the_run(workers: Workers, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more can be kept: what was measured before is."""

    def append(self: Journal, record: JournalRecord) -> None:
        if isinstance(record, Result) and record.case.path == "channels_last":
            raise ValueError("cannot write to results.jsonl: No space left on device")
        written(self, record)

    written = Journal.append
    monkeypatch.setattr(Journal, "append", append)
    with pytest.raises(ValueError, match="No space left on device"):
        sit(directory, plan())
    assert statuses(read(directory)) == ["eager valid"]
    assert workers.paths_run() == ["eager", "channels_last"]


def test_out_of_memory_is_a_row_and_the_batch_size_stays(workers: Workers, directory: Path) -> None:
    workers.measure = lambda case: failed(case, Status.OOM, "tried 2 GiB") if case.path == "eager" else result(case)
    run, _ = sit(directory, plan())
    assert statuses(run) == ["eager oom", "channels_last valid", "compile valid"]
    assert run.results[0].case == CASES[0]


def test_logs_are_kept_for_failed_cases_only(workers: Workers, directory: Path) -> None:
    def measure(case: Case) -> Result:
        if case.path == "compile":
            raise WorkerCrashedError("SIGKILL during build")
        return failed(case, Status.OOM, "full") if case.path == "channels_last" else result(case)

    workers.measure = measure
    sit(directory, plan())
    logs = {log.name: log.read_text() for log in (directory / "logs").iterdir()}
    assert logs == {f"{case.key}.log": "what the worker said" for case in CASES[1:]}


def test_phases_before_the_worker_are_in_the_row(workers: Workers, directory: Path) -> None:
    workers.takes_s = 5.0
    run, _ = sit(directory, plan())
    first, second, _ = run.results
    assert first.phases_s["reference"] == 2.0
    assert first.phases_s.items() >= result().phases_s.items(), "the worker's own clock is the finer one"
    assert "reference" not in second.phases_s, "shared"


def test_the_row_of_a_worker_that_was_killed_has_the_time_that_it_took(workers: Workers, directory: Path) -> None:
    def measure(_: Case) -> Result:
        raise WorkerTimeoutError("no result within 240 s, during build")

    workers.takes_s, workers.measure = 240.0, measure
    run, _ = sit(directory, plan())
    assert [row.phases_s["build"] for row in run.results] == [240.0] * 3


def test_start_up_is_timed_up_to_the_first_phase(
    workers: Workers, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(terms: Terms, entry: Entry, *arguments: object) -> AbstractContextManager[TalkingWorker]:
        workers.now_s += 0.75
        return Workers.started(workers, terms, entry, *arguments)

    monkeypatch.setattr(workers, "started", started)
    workers.measure = lambda case: result(case, phases_s={"build": 1.0})
    run, _ = sit(directory, plan())
    assert [row.phases_s for row in run.results] == [
        {"reference": 2.0, "start-up": 0.75, "build": 1.0},
        {"start-up": 0.75, "build": 1.0},
        {"compiler": 0.0, "start-up": 0.75, "build": 1.0},
    ]


# --- the largest batch ------------------------------------------------------------------------------------------------


def test_largest_batch_is_a_row(workers: Workers, directory: Path) -> None:
    case = replace(CASES[0], kind="max-batch", batch_size=1)
    run, heard = sit(directory, plan(case))
    (row,) = run.results
    assert (row.status, row.max_batch_size, row.measurement) == (Status.VALID, 5, None)
    probes = [arguments[0] for name, arguments in workers.calls if name == "fits"]
    assert probes == [replace(case, batch_size=size) for size in (1, 2, 4, 8, 6, 5)]
    assert "prepare_reference" not in workers.names()
    assert "phase eager batch 8" in heard
    assert row.phases_s == {"search": float(len(probes))}
    assert list((directory / "logs").iterdir()) == []


def test_no_batch_that_fits_is_out_of_memory(workers: Workers, directory: Path) -> None:
    workers.fits = lambda _: False
    run, _ = sit(directory, plan(replace(CASES[0], kind="max-batch", batch_size=1)))
    (row,) = run.results
    assert (row.status, row.reason, row.max_batch_size) == (Status.OOM, "not even a batch of 1 fits", 0)


def test_probe_that_hangs_is_a_row(workers: Workers, directory: Path) -> None:
    def fits(batch_size: int) -> bool:
        if batch_size == 4:
            raise WorkerTimeoutError("no result within 600 s, during probe")
        return True

    workers.fits = fits
    run, _ = sit(directory, plan(replace(CASES[0], kind="max-batch", batch_size=1), CASES[1]))
    assert statuses(run) == ["eager timeout", "channels_last valid"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cases", "words"), [((CPU_CASE, CASE), "cpu and cuda"), ((), "none")])
def test_run_is_for_one_device(workers: Workers, directory: Path, cases: tuple[Case, ...], words: str) -> None:
    with pytest.raises(ValueError, match=f"this plan is for {words}: pass --device"):
        runner.run(directory, Plan(name="mixed", cases=cases, settings=Settings()), observer=Observer())
    assert workers.calls == []
    assert not directory.exists()


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(workers: Workers, directory: Path) -> None:
    workers.weights_problem = "the weights in w.pt do not fit"
    models = (CASES[0], replace(CASES[0], model="resnet50"), CASES[1])
    with pytest.raises(ValueError, match=r"^the weights in w\.pt do not fit$"):
        sit(directory, plan(*models, weights="w.pt"))
    assert workers.calls == [("require_weights", (("resnet18", "resnet50"), "w.pt"))]
    assert not directory.exists()


def test_weights_are_looked_at_again_on_resume(workers: Workers, directory: Path) -> None:
    """They may be gone, or the path may be relative to another directory."""
    sit(directory, plan(weights="w.pt"))
    assert read(directory).plan.settings.weights == "w.pt", "as given"
    written = (directory / "results.jsonl").read_bytes()
    workers.weights_problem = "cannot read weights from w.pt"
    with pytest.raises(ValueError, match="cannot read weights"):
        sit(directory, None)
    assert (directory / "results.jsonl").read_bytes() == written


def test_random_weights_need_no_look(workers: Workers, directory: Path) -> None:
    sit(directory, plan())
    assert "require_weights" not in workers.names()


def test_survey_that_fails_ends_the_run(workers: Workers, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: str) -> Environment:
        raise WorkerCrashedError("ImportError: no torch during start-up")

    monkeypatch.setattr(workers, "_survey", crash)
    with pytest.raises(WorkerCrashedError, match="no torch"):
        sit(directory, plan())


# --- real workers -----------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_tiny_sweep_with_real_workers(directory: Path) -> None:
    cell = replace(CPU_CASE, batch_size=2, image_size=32)
    cases = (cell, replace(cell, path="channels_last"), replace(cell, path="cuda-graph"), replace(cell, kind="parity"))
    settings = Settings(
        confidence=0.99, warmup_budget_s=0.2, sample_minimum_s=0.0, sample_budget_s=60.0, parity_steps=1
    )
    run, _ = sit(directory, Plan(name="tiny", cases=cases, settings=settings))
    assert statuses(run) == ["eager valid", "channels_last valid", "cuda-graph unsupported", "eager valid"]
    eager, other, _, checked = run.results
    assert list(eager.phases_s)[:3] == ["reference", "start-up", "build"]
    assert list(other.phases_s)[:2] == ["start-up", "build"], "the reference is shared"
    assert list(other.phases_s)[-3:] == ["baselines", "turns", "memory"]
    assert other.measurement is not None
    assert set(other.measurement.turns) == {eager.case.key, other.case.key}
    assert all(seconds >= 0 for row in run.results for seconds in row.phases_s.values())
    assert eager.measurement is not None
    assert eager.measurement.converged
    assert (checked.measurement, checked.parity is not None) == (None, True)
    assert run.environment is not None
    assert {row.environment_hash for row in run.results} == {run.environment.hash}
    assert run.ceilings is not None
    assert run.ceilings.copy_bytes_per_s > 0
    assert list((directory / "logs").iterdir()) == []
