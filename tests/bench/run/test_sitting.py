"""What a sitting runs: what is left out, what is known of the machine, what is run again."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.types import MARKS, Case, Ceilings, Environment, Result, Status
from tests.support.made_up_workers import (
    CASES,
    PATHS,
    Workers,
    lines,
    plan,
    sit,
    statuses,
)
from tests.support.synthetic_runs import CEILINGS, ENVIRONMENT, failed, result

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
