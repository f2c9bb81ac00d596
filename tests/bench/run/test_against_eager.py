"""A case beside eager: workers that take turns, and what a baseline that cannot run costs."""

from dataclasses import replace

import pytest

from bench.run import against_eager
from bench.stats import MINIMUM_SAMPLES
from bench.types import Case, Settings
from bench.workers.errors import WorkerCrashedError
from bench.workers.parent import Terms
from tests.support import faulty
from tests.support.processes import PATIENCE_S
from tests.support.synthetic_runs import CASE

EAGER, COMPILED = (replace(CASE, path=path, device="cpu", image_size=32) for path in ("eager", "compile"))
QUICK = Settings(confidence=0.99, warmup_budget_s=0.1, sample_budget_s=600.0)


def test_workers_take_turns() -> None:
    phases: list[str] = []
    with Terms().started(faulty.take_turns, 2.0) as worker:
        worker.ready(PATIENCE_S)
        found, note = against_eager.compare(COMPILED, worker, (EAGER,), QUICK, phases.append)
        worker.dismiss()
        assert worker.answer(PATIENCE_S) == f"asked {MINIMUM_SAMPLES} times"
    assert phases == ["baselines", "turns"]
    assert note == ""
    assert found[COMPILED.key] == ((2.0,),) * MINIMUM_SAMPLES
    assert len(found[EAGER.key]) == MINIMUM_SAMPLES
    assert all(ms > 0 for turn in found[EAGER.key] for ms in turn)


@pytest.mark.parametrize("others", [(), (EAGER,)])
def test_baseline_that_cannot_run_costs_its_comparison_alone(others: tuple[Case, ...]) -> None:
    with Terms().started(faulty.take_turns, 2.0) as worker:
        worker.ready(PATIENCE_S)
        baselines = (replace(EAGER, model="resnet1", precision="bf16"), *others)
        found, note = against_eager.compare(COMPILED, worker, baselines, QUICK, lambda _: None)
        worker.dismiss()
        assert worker.answer(PATIENCE_S) == f"asked {MINIMUM_SAMPLES if others else 0} times"
    assert set(found) == ({COMPILED.key, EAGER.key} if others else set())
    assert note.startswith("eager in bf16 does not run beside it: ")
    assert "resnet1" in note


def test_case_that_dies_in_its_turn_is_told_by_its_answer() -> None:
    with Terms().started(faulty.take_turns, 0.0) as worker:
        worker.ready(PATIENCE_S)
        found, note = against_eager.compare(COMPILED, worker, (EAGER,), QUICK, lambda _: None)
        assert (found, note) == ({}, "a turn failed: SIGKILL during start-up")
        worker.dismiss()
        with pytest.raises(WorkerCrashedError, match="SIGKILL"):
            worker.answer(PATIENCE_S)
