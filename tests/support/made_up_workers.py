"""Workers that a test makes up, for the runner: what they answer, what they are asked, and how long all takes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.run import against_eager, budget, phases, runner, sitting
from bench.types import Case, Cost, Environment, Plan, Reference, Result, Rounds, Run, Settings, Status
from bench.workers.child import SERVING
from bench.workers.entry import Entry
from bench.workers.parent import Terms
from tests.support.synthetic_runs import CASE, CEILINGS, ENVIRONMENT, result

COST = Cost(flops=7, bytes=8)
CPU_CASE = replace(CASE, device="cpu")
PATHS = ("eager", "channels_last", "compile")
COMPILED = {"compile", "compile-max-autotune"}
CASES = tuple(replace(CPU_CASE, path=path) for path in PATHS)


def plan(*cases: Case, **settings: object) -> Plan:
    return Plan(name="made-up", cases=cases or CASES, settings=Settings(**settings))  # type: ignore[arg-type]


class Observer:
    """Keeps all that it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def preparing(self, text: str) -> None:
        self.heard.append(f"preparing {text}")

    def started(self, plan: Plan, pending: int) -> None:
        self.heard.append(f"started {plan.name} {pending}")

    def notice(self, text: str) -> None:
        self.heard.append(f"notice {text}")

    def case_started(self, case: Case, number: int) -> None:
        self.heard.append(f"case {number} {case.path}")

    def phase(self, case: Case, phase: str) -> None:
        self.heard.append(f"phase {case.path} {phase}")

    def case_finished(self, result: Result) -> None:
        self.heard.append(f"finished {result.case.path} {result.status}")


class Workers:
    """Stands in for `bench.workers.parent.Terms` and for the clock; every worker's time is made up as well."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.takes_s = 0.0  # of a measured case
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self.environment = ENVIRONMENT
        self.missing: dict[str, str] = {}  # by path
        self.costs: dict[str, Cost] = {}  # by key, where it is not COST
        self.measure: Callable[[Case], Result] = result
        self.ceilings = CEILINGS
        self.beaten = False  # whether what was kept of the ceilings is
        self.fits: Callable[[int], bool] = lambda batch_size: batch_size <= 5
        self.weights_problem = ""
        self.references: list[Path] = []
        self.limits: list[float] = []  # seconds that workers of cases were given, one each time they were waited for
        self.baselines: dict[str, tuple[Case, ...]] = {}  # by key of the case

    def call(self, terms: Terms, entry: Entry, *arguments: object) -> object:
        assert entry.module == "bench.run.worker"
        self.calls.append((entry.function, arguments))
        assert terms.timeout_s > 0
        if entry.function not in ("survey", "ceilings", "inspect", "require_weights"):
            self.limits.append(terms.timeout_s)
        if terms.log is not None:
            terms.log.write_text("what the worker said")
        if entry.function == "fits":
            terms.on_phase("build")
        return getattr(self, f"_{entry.function}")(*arguments)

    @contextmanager
    def started(self, terms: Terms, entry: Entry, *arguments: object) -> Iterator["TalkingWorker"]:
        self.calls.append((entry.function, arguments))
        if terms.log is not None:
            terms.log.write_text("what the worker said")
        yield TalkingWorker(
            lambda: getattr(self, f"_{entry.function}")(*arguments), serves=bool(arguments[-1]), limits=self.limits
        )

    def compare(
        self, case: Case, _: object, baselines: tuple[Case, ...], settings: Settings, __: object
    ) -> tuple[dict[str, Rounds], str]:
        self.limits.append(settings.timeout_s)
        self.baselines[case.key] = baselines
        return {case.key: ((1.0,),)}, "eager was ill"

    def monotonic(self) -> float:
        return self.now_s

    def names(self, *left_out: str) -> list[str]:
        return [name for name, _ in self.calls if name not in left_out]

    def paths_run(self) -> list[str]:
        return [case.path for name, (case, *_) in self.calls if name == "run_case" and isinstance(case, Case)]

    def _survey(self, device: str, _weights: str) -> Environment:
        assert device == "cpu"
        return self.environment

    def _ceilings(self, _: str, kept: object) -> object:
        return self.ceilings if kept is None or self.beaten else kept

    def _inspect(self, cases: tuple[Case, ...]) -> object:
        return {case.key: (self.costs.get(case.key, COST), self.missing.get(case.path, "")) for case in cases}

    def _require_weights(self, *_: object) -> None:
        if self.weights_problem:
            raise ValueError(self.weights_problem)

    def _prepare_reference(self, case: Case, _: Settings, rates: object, scratch: Path) -> Reference:
        assert rates == self.ceilings
        self.now_s += 2.0
        file = scratch / f"{len(self.references)}.pt"
        file.write_text(case.key)
        self.references.append(file)
        return Reference(batch_size=case.batch_size, note="", files=(str(file),), eager_errors=({},))

    def _run_case(self, case: Case, _: Settings, against: Reference, tools: Path | None, _turns: bool) -> Result:
        assert (tools is not None and tools.is_dir()) == (case.path in COMPILED)
        assert all(Path(file).exists() for file in against.files), "a reference is there as long as it is needed"
        self.now_s += self.takes_s
        return self.measure(case)

    def _prepare_compiler(self, device: str, tools: Path) -> None:
        assert device == "cpu"
        tools.mkdir()

    def _fits(self, case: Case, _: Settings, tools: Path | None) -> bool:
        assert (tools is not None) == (case.path in COMPILED)
        self.now_s += 1.0
        return self.fits(case.batch_size)


class TalkingWorker:
    """Ends with `result`; where it serves, not before it was dismissed."""

    def __init__(self, result: Callable[[], object], *, serves: bool, limits: list[float]) -> None:
        self.result, self.serves, self.limits = result, serves, limits
        self.phases = ["build"]

    def answer_or_serving(self, timeout_s: float, on_phase: Callable[[str], None]) -> object:
        return SERVING if self._waits(timeout_s, on_phase) else self.result()

    def answer(self, timeout_s: float, on_phase: Callable[[str], None]) -> object:
        assert not self._waits(timeout_s, on_phase)
        return self.result()

    def _waits(self, timeout_s: float, on_phase: Callable[[str], None]) -> bool:
        self.limits.append(timeout_s)
        while self.phases:
            on_phase(self.phases.pop())
        return self.serves

    def dismiss(self) -> None:
        assert self.serves
        self.serves = False


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workers:
    workers = Workers()

    def call(terms: Terms, entry: Entry, *arguments: object) -> object:
        return workers.call(terms, entry, *arguments)  # looked up now: tests replace it

    def started(terms: Terms, entry: Entry, *arguments: object) -> AbstractContextManager[TalkingWorker]:
        return workers.started(terms, entry, *arguments)

    monkeypatch.setattr(Terms, "call", call)
    monkeypatch.setattr(Terms, "started", started)
    monkeypatch.setattr(against_eager, "compare", workers.compare)
    for module in (budget, phases, runner, sitting):
        monkeypatch.setattr(module, "monotonic", workers.monotonic)
    monkeypatch.setenv("RESBENCH_CACHE_DIR", str(tmp_path / "cache"))
    return workers


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


def sit(
    directory: Path,
    made: Plan | None = None,
    budget_s: float | None = None,
    again: frozenset[Status] = frozenset(),
    began: float | None = None,
) -> tuple[Run, list[str]]:
    observer = Observer()
    run = runner.run(directory, made, observer=observer, budget_s=budget_s, again=again, began=began)
    return run, observer.heard


def statuses(run: Run) -> list[str]:
    return [f"{result.case.path} {result.status}" for result in run.results]


def lines(directory: Path, kind: str) -> int:
    return (directory / "results.jsonl").read_text().count(f'{{"type":"{kind}"')
