"""What the cases of a sweep share: eager to be compared with, what the compiler knows of the machine, references."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.run import runner
from bench.types import Case, Reference, Result, Status
from bench.workers.errors import WorkerCrashedError, WorkerTimeoutError
from tests.support.made_up_workers import CASES, PATHS, Workers, plan, sit, statuses
from tests.support.synthetic_runs import failed, result

# --- baselines --------------------------------------------------------------------------------------------------------


def test_cases_are_compared_with_eager_of_their_cell(workers: Workers, directory: Path) -> None:
    cells = [replace(case, precision=precision) for precision in ("fp32", "bf16") for case in CASES]
    fp32, bf16 = cells[0], cells[3]
    other_batch = replace(cells[4], batch_size=CASES[0].batch_size + 1)
    sit(directory, plan(*cells, other_batch))
    assert workers.baselines == {
        **{case.key: (fp32,) for case in cells[1:4]},
        **{case.key: (bf16, fp32) for case in cells[4:]},
    }


def test_eager_that_failed_is_no_baseline(workers: Workers, directory: Path) -> None:
    """It would fail again, or time out again, once a path."""
    workers.measure = lambda case: failed(case, Status.OOM, "full") if case.path == "eager" else result(case)
    sit(directory, plan())
    assert workers.baselines == {}


def test_turns_are_in_the_row(workers: Workers, directory: Path) -> None:
    run, _ = sit(directory, plan())
    eager, compiled = run.results[0], run.results[2]
    assert eager.measurement is not None
    assert compiled.measurement is not None
    assert (eager.measurement.turns, compiled.measurement.turns) == ({}, {compiled.case.key: ((1.0,),)})
    assert (eager.measurement.turns_note, compiled.measurement.turns_note) == ("", "eager was ill")
    assert set(workers.baselines) == {case.key for case in CASES[1:]}


def test_parity_alone_takes_no_turns(workers: Workers, directory: Path) -> None:
    sit(directory, plan(*(replace(case, kind="parity") for case in CASES)))
    assert workers.baselines == {}


# --- the compiler -----------------------------------------------------------------------------------------------------


def test_the_compiler_is_prepared_once_a_sitting_if_a_case_compiles(workers: Workers, directory: Path) -> None:
    sit(directory, plan(*CASES, replace(CASES[2], path="compile-max-autotune"), replace(CASES[2], kind="max-batch")))
    assert workers.names("run_case", "fits").count("prepare_compiler") == 1
    workers.calls.clear()
    sit(directory.with_name("another"), plan(CASES[0]))
    assert "prepare_compiler" not in workers.names()


def test_a_compiler_that_does_not_work_costs_the_cases_that_compile(
    workers: Workers, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise WorkerCrashedError("CppCompileError: C++ compile error during compiler")

    monkeypatch.setattr(workers, "_prepare_compiler", broken)
    run, _ = sit(directory, plan(*CASES))
    assert statuses(run) == ["eager valid", "channels_last valid", "compile crashed"]
    log = f"logs/{CASES[2].key}.log"
    assert run.results[-1].reason == f"CppCompileError: C++ compile error during compiler; see {log}"


def test_a_compiler_that_hangs_is_waited_for_once(
    workers: Workers, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_: object) -> None:
        raise WorkerTimeoutError("no result within 60 s, during compiler")

    monkeypatch.setattr(workers, "_prepare_compiler", hangs)
    run, _ = sit(directory, plan(*CASES, replace(CASES[2], path="compile-max-autotune")))
    assert statuses(run)[2:] == ["compile timeout", "compile-max-autotune timeout"]
    assert workers.names().count("prepare_compiler") == 1


# --- references -------------------------------------------------------------------------------------------------------


def test_reference_is_made_once_a_cell(workers: Workers, directory: Path) -> None:
    cells = [replace(case, batch_size=batch) for batch in (8, 4) for case in CASES]
    sit(directory, plan(*cells, replace(CASES[0], precision="bf16"), replace(CASES[0], kind="parity")))
    asked = [arguments[0] for name, arguments in workers.calls if name == "prepare_reference"]
    assert asked == [CASES[0], replace(CASES[0], batch_size=4), replace(CASES[0], precision="bf16")]


def test_old_references_make_room(workers: Workers, directory: Path) -> None:
    there: list[int] = []

    def measure(case: Case) -> Result:
        there.append(sum(file.exists() for file in workers.references))
        return result(case)

    workers.measure = measure
    cells = [replace(CASES[0], batch_size=batch) for batch in range(1, 8)]
    sit(directory, plan(*cells, replace(CASES[1], batch_size=1)))
    assert there == [1, 2, 3, 4, 4, 4, 4, 4]
    assert len(workers.references) == 8, "the forgotten one is made again"
    assert not any(file.exists() for file in workers.references), "gone with the run"


def test_reference_that_timed_out_is_not_tried_again(
    workers: Workers, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the time-out each time. Other cells go on, and so does the next sitting."""
    right = workers._prepare_reference

    def prepare(case: Case, *rest: object) -> Reference:
        if case.batch_size == CASES[0].batch_size:
            raise WorkerTimeoutError("no result within 60 s, during reference")
        return right(case, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "_prepare_reference", prepare)
    other = replace(CASES[0], batch_size=CASES[0].batch_size + 1)
    run, _ = sit(directory, plan(*CASES, other))
    assert statuses(run) == [*(f"{path} timeout" for path in PATHS), "eager valid"]
    reason = "no result within 60 s, during reference"
    assert [row.reason for row in run.results[:-1]] == [f"{reason}; see logs/{CASES[0].key}.log", reason, reason]
    assert workers.names().count("prepare_reference") == 2, "once a cell"
    monkeypatch.setattr(workers, "_prepare_reference", right)
    run, _ = sit(directory, None)
    assert [row.status for row in run.results] == [Status.VALID] * 4


def test_references_that_a_killed_run_left_are_not_used(workers: Workers, directory: Path) -> None:
    workers.measure = lambda case: failed(case, Status.OOM, "full")
    sit(directory, plan(CASES[0]))
    left = directory / runner.SCRATCH / "of another sitting.pt"
    left.parent.mkdir()
    left.touch()
    workers.measure = lambda case: failed(case, Status.OOM, "full") if left.exists() else result(case)
    run, _ = sit(directory, None)
    assert statuses(run) == ["eager valid"]
    assert not left.parent.exists()


def test_file_that_a_kept_reference_shares_stays(
    workers: Workers, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Precisions share their fp64 trajectory."""
    shared = tmp_path / "shared.pt"
    shared.write_text("fp64")
    made = workers._prepare_reference

    def prepare(*arguments: object) -> Reference:
        reference = made(*arguments)  # type: ignore[arg-type]
        return replace(reference, files=(*reference.files, str(shared)))

    monkeypatch.setattr(workers, "_prepare_reference", prepare)
    run, _ = sit(directory, plan(*(replace(CASES[0], batch_size=batch) for batch in range(1, 8))))
    assert len(run.results) == 7
    assert shared.exists()
