"""A runner that runs nothing and keeps a real journal, for the tests of commands."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import pytest
from click.testing import CliRunner, Result

from bench.cli import main
from bench.record.journal import Journal, read
from bench.report import plots
from bench.run import runner
from bench.run.phases import Observer
from bench.types import Case, Plan, Run, Session, Status
from bench.types import Result as CaseResult
from bench.workers.parent import Terms
from tests.support.synthetic_runs import ENVIRONMENT, FAILED, failed, result

REPORTS = {"results.jsonl", "results.csv", "report.md", "environment.json"}


@dataclass
class FakeRunner:
    """Journals one invented result a case; `becomes` makes it, and None ends the run there."""

    becomes: Callable[[Case], CaseResult | None] = result
    plans: list[Plan] = field(default_factory=list)
    budgets: list[float | None] = field(default_factory=list)
    again: list[frozenset[Status]] = field(default_factory=list)
    as_planned: bool = False  # what ends it early is the preset's own budget

    def run(
        self,
        directory: Path,
        plan: Plan | None,
        *,
        observer: Observer,
        budget_s: float | None = None,
        again: frozenset[Status] = frozenset(),
        began: float | None = None,
    ) -> Run:
        assert began is None or began <= monotonic()
        self.budgets.append(budget_s)
        self.again.append(again)
        with Journal.resume(directory) if plan is None else Journal.create(directory, plan) as journal:
            self.plans.append(journal.plan)
            journal.append(ENVIRONMENT)
            interrupted = self._work(journal, observer)
            as_planned = bool(interrupted) and self.as_planned
            journal.append(
                Session(
                    started_at="2030-01-01T00:00:00+00:00", wall_s=30.0, interrupted=interrupted, as_planned=as_planned
                )
            )
        return read(directory)

    def _work(self, journal: Journal, observer: Observer) -> str:
        done = journal.statuses(ENVIRONMENT.hash)
        pending = [case for case in journal.plan.cases if case.key not in done]
        observer.started(journal.plan, len(pending))
        for number, case in enumerate(pending, 1):
            observer.case_started(case, number)
            observer.phase(case, "sampling")
            made = self.becomes(case)
            if made is None:
                return "Ctrl-C"
            journal.append(made)
            observer.case_finished(made)
        return ""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRunner:
    """Its reports have no pictures, which take most of a second each to draw: tests/bench/report looks at those."""
    fake = FakeRunner()
    monkeypatch.setattr(plots, "figures", lambda _: {})
    monkeypatch.setattr(runner, "run", fake.run)
    return fake


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test in an empty current directory, on a machine without a GPU unless it says otherwise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Terms, "call", lambda _, entry: {"bench.machine.doctor:has_cuda": False}[str(entry)])
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="resbench")


def becomes(status: Status, path: str = "compile") -> Callable[[Case], CaseResult]:
    """Every case of `path` with that status, the rest valid."""
    parity = FAILED if status is Status.PARITY_FAILED else None
    return lambda case: failed(case, status, "because", parity=parity) if case.path == path else result(case)


CPU = (
    "run", "--preset", "cpu-quick", "--paths", "eager,compile", "--modes", "infer", "--precisions", "fp32",
    "--batch-sizes", "4",
)  # fmt: skip
