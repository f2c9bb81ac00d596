"""The sweep over workers that a test makes up, and once over real ones."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from math import nan
from pathlib import Path

import pytest
from tests.support.made_up_workers import CASES, COST, CPU_CASE, PATHS, Observer, TalkingWorker, Workers, plan, sit, statuses
from tests.support.synthetic_runs import CASE, CEILINGS, ENVIRONMENT, failed, result

from bench.run import budget, runner, sitting
from bench.workers.errors import WorkerCrashedError, WorkerTimeoutError
from bench.record.journal import Journal, Record, read
from bench.types import MARKS, Case, Ceilings, Environment, Plan, Result, Settings, Status


def lines(directory: Path, kind: str) -> int:
    return (directory / "results.jsonl").read_text().count(f'{{"type":"{kind}"')


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


def no_result(_: Case) -> Result:
    return "done"  # type: ignore[return-value]


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
    no_result: "TypeError: the worker answered with str, which is no result",
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

    def append(self: Journal, record: Record) -> None:
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
    def started(*arguments: object, **options: object) -> AbstractContextManager[TalkingWorker]:
        workers.now_s += 0.75
        return Workers.started(workers, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sitting, "started", started)
    workers.measure = lambda case: result(case, phases_s={"build": 1.0})
    run, _ = sit(directory, plan())
    assert [row.phases_s for row in run.results] == [
        {"reference": 2.0, "start-up": 0.75, "build": 1.0},
        {"start-up": 0.75, "build": 1.0},
        {"compiler": 0.0, "start-up": 0.75, "build": 1.0},
    ]


# --- stopping and going on --------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("entry", ["weights_problem", "survey", "ceilings", "inspect"])
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

    def call(entry: str, *arguments: object, timeout_s: float, **options: object) -> object:
        if entry.endswith(("survey", "ceilings", "inspect")):
            limits.append(timeout_s)
            workers.now_s += 2.0
        return workers.call(entry, *arguments, timeout_s=timeout_s, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(budget, "call", call)
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


# --- emulated precisions, and what a device was measured to reach -----------------------------------------------------


BF16 = tuple(replace(case, precision="bf16") for case in CASES)
EMULATED = Ceilings(copy_bytes_per_s=1e9, matmul_flops_per_s={"fp32": 149e9, "bf16": 7e9})
FP32 = replace(CASES[0], precision="fp32")


def test_a_precision_that_is_slower_than_fp32_is_left_out_with_both_figures(workers: Workers, directory: Path) -> None:
    workers.ceilings = EMULATED
    run, heard = sit(directory, plan(FP32, *BF16))
    assert statuses(run) == ["eager valid", *(f"{path} unsupported" for path in PATHS)]
    assert {row.reason for row in run.results[1:]} == {
        "bf16 is emulated on this CPU: 7.00 GFLOP/s, fp32 has 149 GFLOP/s; --precisions bf16 measures it all the same"
    }
    assert workers.paths_run() == ["eager"]
    assert heard.index("preparing measuring what this device reaches") < heard.index("started made-up 4")


def test_an_emulated_precision_that_was_asked_for_is_measured(workers: Workers, directory: Path) -> None:
    workers.ceilings = EMULATED
    run, _ = sit(directory, replace(plan(*BF16), emulated=True))
    assert {row.status for row in run.results} == {Status.VALID}
    run, _ = sit(directory, None, again=frozenset({Status.VALID}))
    assert {row.status for row in run.results} == {Status.VALID}, "the journal holds that it was asked for"


def test_parity_is_checked_in_emulated_precisions_too(workers: Workers, directory: Path) -> None:
    workers.ceilings = EMULATED
    run, _ = sit(directory, plan(*(replace(case, kind="parity") for case in BF16)))
    assert workers.paths_run() == list(PATHS)
    assert {row.status for row in run.results} == {Status.VALID}


def test_what_a_device_reaches_is_measured_once_a_machine(workers: Workers, tmp_path: Path) -> None:
    workers.ceilings = replace(CEILINGS, measured_at=datetime.now(UTC).isoformat())
    first, _ = sit(tmp_path / "first", plan(CASES[0]))
    workers.ceilings = replace(workers.ceilings, copy_bytes_per_s=7e9)
    second, _ = sit(tmp_path / "second", plan(CASES[0]))
    assert second.ceilings == first.ceilings
    workers.environment = Environment(facts={**ENVIRONMENT.facts, "torch_threads": "7"})
    third, _ = sit(tmp_path / "third", plan(CASES[0]))
    assert third.ceilings == workers.ceilings, "it is another machine to all that counts"


def test_what_was_measured_beside_other_work_is_measured_again(workers: Workers, tmp_path: Path) -> None:
    workers.ceilings = replace(CEILINGS, measured_at=datetime.now(UTC).isoformat())
    sit(tmp_path / "busy", plan(CASES[0]))
    workers.ceilings = replace(workers.ceilings, copy_bytes_per_s=7e9)
    workers.beaten = True
    quiet, _ = sit(tmp_path / "quiet", plan(CASES[0]))
    assert quiet.ceilings == workers.ceilings
    workers.beaten = False
    later, _ = sit(tmp_path / "later", plan(CASES[0]))
    assert later.ceilings == quiet.ceilings, "it is kept"


def test_ctrl_c_keeps_what_is_measured(workers: Workers, directory: Path) -> None:
    def measure(case: Case) -> Result:
        if case.path == "channels_last":
            raise KeyboardInterrupt
        return result(case)

    workers.measure = measure
    run, heard = sit(directory, plan())
    assert statuses(run) == ["eager valid"]
    assert run.sessions[-1].interrupted == "Ctrl-C"
    assert heard[-1] == "notice stopped: Ctrl-C"
    workers.measure = result
    run, _ = sit(directory, None)
    assert statuses(run) == ["eager valid", "channels_last valid", "compile valid"]
    assert workers.paths_run() == ["eager", "channels_last", "channels_last", "compile"]


def test_ctrl_c_before_the_first_case(workers: Workers, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: str) -> Environment:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "_survey", interrupt)
    run, _ = sit(directory, plan())
    assert (run.results, run.sessions[-1].interrupted) == ((), "Ctrl-C")


def test_resume_runs_what_was_never_run_then_what_failed(workers: Workers, directory: Path) -> None:
    def measure(case: Case) -> Result:
        if case.path == "compile":
            raise KeyboardInterrupt
        return failed(case, Status.OOM, "full") if case.path == "eager" else result(case)

    workers.measure = measure
    sit(directory, plan())
    workers.measure = result
    run, _ = sit(directory, None)
    assert statuses(run) == ["eager valid", "channels_last valid", "compile valid"]
    assert workers.paths_run() == [*PATHS, "compile", "eager"]


@pytest.mark.parametrize("mark", sorted(MARKS))
def test_marked_rows_are_measured_again_only_where_it_is_asked_for(
    workers: Workers, directory: Path, mark: Status
) -> None:
    workers.measure = lambda case: replace(result(case), status=mark if case.path == "eager" else Status.VALID)
    sit(directory, plan())
    assert not list((directory / "logs").iterdir()), "nothing failed"
    workers.measure = result
    run, heard = sit(directory, None)
    assert (statuses(run)[0], heard) == (f"eager {mark}", ["started made-up 0"])
    run, _ = sit(directory, None, again=MARKS)
    assert statuses(run) == ["eager valid", "channels_last valid", "compile valid"]
    assert workers.paths_run() == [*PATHS, "eager"]


def test_resume_of_a_finished_run_asks_only_where_it_is(workers: Workers, directory: Path) -> None:
    sit(directory, plan())
    workers.calls.clear()
    run, heard = sit(directory, None)
    assert workers.names() == ["survey"]
    assert heard == ["started made-up 0"]
    assert (len(run.results), len(run.sessions)) == (3, 2)


def test_another_environment_is_measured_anew(workers: Workers, directory: Path) -> None:
    sit(directory, plan())
    workers.environment = Environment(facts={**ENVIRONMENT.facts, "torch": "2.16.0"})
    run, heard = sit(directory, None)
    assert workers.paths_run() == [*PATHS, *PATHS]
    assert workers.names().count("ceilings") == 2
    assert {row.environment_hash for row in run.results} == {workers.environment.hash}
    why = "3 results measured in another environment left out: torch was 2.15.0 and is 2.16.0"
    assert run.notices == (why,)
    assert heard[:3] == [f"notice {why}", "preparing measuring what this device reaches", "started made-up 3"]


@pytest.mark.usefixtures("workers")
def test_torn_line_is_told(directory: Path) -> None:
    sit(directory, plan())
    with (directory / "results.jsonl").open("a") as journal:
        journal.write('{"type":"result","case":')
    run, heard = sit(directory, None)
    assert heard[0].startswith("notice results.jsonl: line ")
    assert len(run.results) == 3
    assert lines(directory, "result") == 3


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
    assert workers.calls == [("weights_problem", (("resnet18", "resnet50"), "w.pt"))]
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
    assert "weights_problem" not in workers.names()


def test_survey_that_fails_ends_the_run(workers: Workers, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: str) -> Environment:
        raise WorkerCrashedError("ImportError: no torch during start-up")

    monkeypatch.setattr(workers, "_survey", crash)
    with pytest.raises(WorkerCrashedError, match="no torch"):
        sit(directory, plan())


# --- real workers -----------------------------------------------------------------------------------------------------


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
