"""What becomes of a case inside its process: statuses, reasons and phases. The programs are real, and tiny."""

import resource
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from bench.machine.requirements import INTERPRETED_REASON
from bench.measure import memory, out_of_memory
from bench.parity import reference
from bench.run import case_run, worker
from bench.types import Case, Measurement, Memory, Mode, ParityResult, Reference, Settings, Status
from bench.workers.errors import is_for_people
from bench.workers.parent import call
from resnet.models.build import build_model
from resnet.program import Program, StepOutput
from tests.support import faulty
from tests.support.narrow_networks import NARROW18
from tests.support.other_programs import other_program
from tests.support.synthetic_runs import CEILINGS, FAILED, PASSED, TELEMETRY, measurement

CASE = Case(model="resnet18", mode="infer", precision="fp32", batch_size=2, image_size=32, path="eager", device="cpu")
SETTINGS = Settings(confidence=0.99, warmup_budget_s=0.2, sample_minimum_s=0.0, sample_budget_s=60.0, parity_steps=1)
RATES = replace(CEILINGS, matmul_flops_per_s={"fp64": 1e12})
NARROW = replace(CASE, model=NARROW18)  # for what runs in the tests' own process: real workers do not know it
HUGE = replace(CASE, batch_size=2**22, image_size=224)  # 2.3 TiB of images


@pytest.fixture(scope="module")
def against(tmp_path_factory: pytest.TempPathFactory, narrow_depth: None) -> Reference:  # noqa: ARG001
    return reference.prepare(NARROW, SETTINGS, RATES, tmp_path_factory.mktemp("reference"))


@pytest.fixture(autouse=True)
def own_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    """No limits on the memory of the tests' own process."""
    monkeypatch.setattr(worker, "_own_resources", lambda *_: nullcontext())


# --- status and reason ------------------------------------------------------------------------------------------------

GOOD = measurement(4.0)
BUSY = replace(TELEMETRY, other_processes=2, throttle_reasons=("sw_power_cap", "hw_slowdown"))
PARITY_REASON = (
    "1 of 62 tensors are wrong; the first is grad:conv1.weight@1, in layer1.0.conv1: error inf, allowed 0.004, "
    "eager's 0.002"
)
COMPILER_REASON = "2 recompilations and 1 graph breaks while sampling"
SHARED_REASON = "2 other processes on the GPU while sampling"
UNSTABLE_REASON = "the 95 % interval of the median is not within 99.0% of it after 200 samples in 60 s"
# from the worst to none: each has all that follow it as well
MARKS: tuple[tuple[Status, str, ParityResult, Measurement | None], ...] = (
    (Status.PARITY_FAILED, PARITY_REASON, FAILED, replace(
        GOOD, recompilations=2, graph_breaks=1, telemetry=BUSY, converged=False
    )),
    (Status.RECOMPILED, COMPILER_REASON, PASSED, replace(
        GOOD, recompilations=2, graph_breaks=1, telemetry=BUSY, converged=False
    )),
    (Status.SHARED_GPU, SHARED_REASON, PASSED, replace(GOOD, telemetry=BUSY, converged=False)),
    (Status.THROTTLED, "sw_power_cap, hw_slowdown", PASSED, replace(
        GOOD, telemetry=replace(BUSY, other_processes=0), converged=False
    )),
    (Status.UNSTABLE, UNSTABLE_REASON, PASSED, replace(GOOD, converged=False)),
    (Status.VALID, "", PASSED, GOOD),
)  # fmt: skip


@pytest.mark.parametrize("place", range(len(MARKS)))
def test_status_is_the_worst_and_has_its_reason(place: int) -> None:
    status, reason, verdict, measured = MARKS[place]
    assert case_run.status_of(verdict, measured, SETTINGS) == (status, reason)
    marks = list(case_run.marks_of(verdict, measured, SETTINGS))
    assert marks == [(worse, why) for worse, why, _, _ in MARKS[place:-1]]


@pytest.mark.parametrize(("verdict", "status"), [(PASSED, Status.VALID), (FAILED, Status.PARITY_FAILED)])
def test_status_of_a_case_that_was_only_checked(verdict: ParityResult, status: Status) -> None:
    assert case_run.status_of(verdict, None, SETTINGS)[0] is status


def test_status_of_a_case_that_is_not_to_be_timed() -> None:
    assert case_run.status_of(PASSED, None, SETTINGS, "interpreted") == (Status.NOT_TIMED, "interpreted")
    assert case_run.status_of(FAILED, None, SETTINGS, "interpreted")[0] is Status.PARITY_FAILED


@pytest.mark.parametrize("changes", [{"recompilations": 1}, {"graph_breaks": 1}])
def test_either_of_the_compilers_counts_marks_the_row(changes: dict[str, int]) -> None:
    assert case_run.status_of(PASSED, replace(GOOD, **changes), SETTINGS)[0] is Status.RECOMPILED  # type: ignore[arg-type]


@pytest.mark.parametrize(("error", "is_memory"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
    (MemoryError(), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"), True),
    (RuntimeError("could not create a memory object"), True),
    (RuntimeError("std::bad_alloc"), True),
    (RuntimeError("CUDA error: out of memory"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
])  # fmt: skip
def test_out_of_memory_is_told_from_other_errors(error: BaseException, is_memory: bool) -> None:
    assert out_of_memory.is_out_of_memory(error) is is_memory


def test_an_error_while_cleaning_up_after_memory_ran_out_is_out_of_memory() -> None:
    error = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError()
    assert out_of_memory.is_out_of_memory(error)
    error.__context__ = ValueError("another")
    assert not out_of_memory.is_out_of_memory(error)


# --- a case from build to result --------------------------------------------------------------------------------------


def test_eager_case_is_valid(against: Reference) -> None:
    result = worker.run_case(NARROW, SETTINGS, against, None, False)
    assert (result.status, result.reason, result.case) == (Status.VALID, "", NARROW)
    assert list(result.phases_s) == ["build", "first call", "parity", "warm-up", "sampling", "memory"]
    assert result.measurement is not None
    assert len(result.measurement.samples_ms) >= 10
    assert result.measurement.converged
    assert result.measurement.memory.parameter_bytes is not None
    parameters = sum(parameter.numel() for parameter in build_model(NARROW18).parameters())
    assert result.measurement.memory.parameter_bytes > 4 * parameters, "parameters in fp32, and buffers"
    assert result.parity is not None
    assert result.parity.worst.error == result.parity.worst.eager_error, "eager beside itself"
    assert result.parity.tensors == 2, "the output of one step, before timing and after"


def test_parity_case_is_checked_twice_and_not_timed(against: Reference) -> None:
    result = worker.run_case(replace(NARROW, kind="parity"), SETTINGS, against, None, False)
    assert (result.status, result.measurement) == (Status.VALID, None)
    assert result.parity is not None
    assert result.parity.tensors == 2
    assert list(result.phases_s) == ["build", "first call", "parity"]


def test_interpreted_kernels_are_checked_and_not_timed(against: Reference) -> None:
    result = worker.run_case(replace(NARROW, path="triton"), SETTINGS, against, None, True)
    assert (result.status, result.measurement) == (Status.NOT_TIMED, None)
    assert result.reason == INTERPRETED_REASON
    assert result.parity is not None
    assert result.parity.passed
    assert result.parity.tensors == 2
    assert list(result.phases_s) == ["build", "first call", "parity"]


def make_programs(monkeypatch: pytest.MonkeyPatch, kind: type[Program]) -> None:
    """Workers run programs of this kind."""
    monkeypatch.setattr(case_run, "make_program", partial(other_program, kind=kind))


class Wrong(Program):
    """Right for a number of steps, then its output is stuck at zero."""

    right: ClassVar[int] = 0
    steps: int = 0

    def step(self, images: Tensor, labels: Tensor) -> StepOutput:
        self.steps += 1
        logits, loss = super().step(images, labels)
        return StepOutput(logits if self.steps <= self.right else torch.zeros_like(logits), loss)


@pytest.mark.parametrize(("right", "timed", "failed"), [(0, False, 1), (2, True, 1)])
def test_wrong_output_leaves_no_speed(
    monkeypatch: pytest.MonkeyPatch, against: Reference, right: int, timed: bool, failed: int
) -> None:
    """Wrong from the start it is not even timed; right in its first check and wrong in the other, its time goes."""
    monkeypatch.setattr(Wrong, "right", right)
    make_programs(monkeypatch, Wrong)
    result = worker.run_case(NARROW, SETTINGS, against, None, False)
    assert (result.status, result.measurement) == (Status.PARITY_FAILED, None)
    assert ("sampling" in result.phases_s) is timed
    assert result.parity is not None
    assert (result.parity.failed, result.parity.worst.tensor) == (failed, "output@1")
    assert result.parity.worst.error == pytest.approx(1.0), "zeros are off by all of it"
    assert result.reason.startswith(f"1 of {1 + timed} tensors are wrong; the first is output@1")


def raise_in_each_step(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def step(*_: object) -> StepOutput:
        raise error

    monkeypatch.setattr(Program, "step", step)


def test_out_of_memory_is_a_result(monkeypatch: pytest.MonkeyPatch, against: Reference) -> None:
    raise_in_each_step(monkeypatch, torch.OutOfMemoryError("CUDA out of memory.\nlong story"))
    result = worker.run_case(NARROW, SETTINGS, against, None, False)
    assert (result.status, result.reason) == (Status.OOM, "OutOfMemoryError: CUDA out of memory.")
    assert list(result.phases_s) == ["build", "first call"]
    assert not worker.fits(NARROW, SETTINGS, None)


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch, against: Reference) -> None:
    raise_in_each_step(monkeypatch, RuntimeError("illegal instruction"))
    with pytest.raises(RuntimeError, match="illegal"):
        worker.run_case(NARROW, SETTINGS, against, None, False)
    with pytest.raises(RuntimeError, match="illegal"):
        worker.fits(NARROW, SETTINGS, None)


class Parent:
    """Asks for three turns of whoever serves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[list[float]] = []
        for module in (worker, case_run):
            monkeypatch.setattr(module, "serve", self.ask)

    def ask(self, reply: Callable[[], list[float]]) -> None:
        self.taken += [reply() for _ in range(3)]


def test_turns_are_served_before_memory_is_measured(monkeypatch: pytest.MonkeyPatch, against: Reference) -> None:
    parent, measure, taken = Parent(monkeypatch), memory.measure, []

    def measure_memory(program: Program, images: Tensor, labels: Tensor, *, baseline_bytes: int) -> Memory:
        taken.append(len(parent.taken))
        return measure(program, images, labels, baseline_bytes=baseline_bytes)

    monkeypatch.setattr(memory, "measure", measure_memory)
    result = worker.run_case(NARROW, SETTINGS, against, None, True)
    assert result.status is Status.VALID, "checked once more after them"
    assert list(result.phases_s)[-1] == "memory"
    assert taken == [3]
    assert all(turn and min(turn) > 0 for turn in parent.taken)


def test_no_turns_where_none_are_wanted_or_nothing_is_timed(
    monkeypatch: pytest.MonkeyPatch, against: Reference
) -> None:
    parent = Parent(monkeypatch)
    worker.run_case(NARROW, SETTINGS, against, None, False)
    worker.run_case(replace(NARROW, kind="parity"), SETTINGS, against, None, True)
    assert parent.taken == []


@pytest.mark.usefixtures("narrow_depth")
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_baseline_serves_turns(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    parent = Parent(monkeypatch)
    worker.run_baseline(replace(NARROW, mode=mode, precision="bf16"), SETTINGS)
    assert all(min(turn) > 0 for turn in parent.taken)
    assert len(parent.taken) == 3


class Recompiling(Program):
    """Compiles a small function anew at steps 3 and later: a fresh shape each time."""

    steps: int = 0

    def _compile(self) -> nn.Module:
        self.double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
        return super()._compile()

    def step(self, images: Tensor, labels: Tensor) -> StepOutput:
        self.steps += 1
        self.double(torch.ones(self.steps))
        return super().step(images, labels)


def test_recompilation_while_sampling_is_told(monkeypatch: pytest.MonkeyPatch, against: Reference) -> None:
    make_programs(monkeypatch, Recompiling)
    with torch._dynamo.config.patch(recompile_limit=1000):
        result = worker.run_case(NARROW, SETTINGS, against, None, False)
    assert result.measurement is not None
    samples = len(result.measurement.samples_ms)
    assert result.measurement.recompilations == samples, "one a sample; those of the warm-up do not count"
    assert result.status is Status.RECOMPILED
    assert result.reason == f"{samples} recompilations and 0 graph breaks while sampling"


@pytest.fixture
def compiler_counts() -> Iterator[None]:
    counters.clear()
    yield
    counters.clear()


@pytest.mark.usefixtures("compiler_counts")
def test_compiler_counts_follow_the_compiler() -> None:
    def broken(x: Tensor) -> Tensor:
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2

    assert case_run._compiler_counts() == (0, 0)
    torch.compile(broken, backend="eager")(torch.ones(3))
    assert case_run._compiler_counts() == (2, 1)


# --- other entries ----------------------------------------------------------------------------------------------------


def test_inspect_tells_cost_and_what_is_missing() -> None:
    captured = replace(CASE, path="cuda-graph")
    found = worker.inspect((CASE, captured))
    assert set(found) == {CASE.key, captured.key}
    assert found[CASE.key][1] == ""
    assert found[captured.key][1] == "path cuda-graph needs a CUDA device, and this case runs on cpu"
    assert found[CASE.key][0].flops > 0


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save(build_model("resnet18").state_dict(), tmp_path / "r18.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    call(worker.require_weights, ("resnet18",), str(tmp_path / "r18.pt"))
    for models, file, words in (
        (("resnet18", "resnet34"), "r18.pt", "do not fit this resnet34"),
        (("resnet18",), "list.pt", "not a state_dict"),
        (("resnet18",), "missing.pt", "cannot read weights"),
    ):
        with pytest.raises(ValueError, match=words) as refused:
            call(worker.require_weights, models, str(tmp_path / file))
        assert is_for_people(refused.value), "as if it had been raised here"


def test_probe_of_a_batch_in_a_real_worker() -> None:
    """The limit on a CPU case's memory refuses at once what no machine has."""
    assert call(worker.fits, CASE, SETTINGS, None) is True
    assert call(worker.fits, HUGE, SETTINGS, None) is False


def test_a_batch_that_no_machine_holds_is_out_of_memory(against: Reference) -> None:
    result = call(worker.run_case, HUGE, SETTINGS, against, None, False)
    assert result.status is Status.OOM
    assert "can't allocate memory" in result.reason
    assert list(result.phases_s) == ["build"]


def test_a_case_has_a_cold_compile_cache_and_on_the_cpu_a_limit() -> None:
    free = memory.free_bytes("cpu")
    limit, cache, entries = call(faulty.own_resources, CASE, None)
    assert 0 < limit < 2 * free, "of the free memory, which others use as well"
    assert entries == []
    assert not Path(cache).exists(), "gone with the case"
    assert call(faulty.own_resources, replace(CASE, device="cuda"), None)[0] == resource.RLIM_INFINITY


def test_steps_that_are_timed_on_the_cpu_find_the_memory_that_was_freed() -> None:
    """Pages are of 4 KiB, or in huge pages of 2 MiB: 200 MB are 95 of those at least."""
    assert call(faulty.page_faults, CASE, SETTINGS, "neither") > 90
    assert call(faulty.page_faults, CASE, SETTINGS, "case") < 20
    assert call(faulty.page_faults, CASE, SETTINGS, "baseline") < 20


@pytest.mark.exhaustive
def test_the_compiler_asks_the_machine_once_and_the_network_stays_cold(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    call(worker.prepare_compiler, "cpu", tools)
    assert any(path.suffix == ".so" for path in tools.rglob("*")), "checks of vector instructions"
    compiled = replace(CASE, path="compile")
    assert call(faulty.vector_checks, compiled, None) > 0
    assert call(faulty.vector_checks, compiled, tools) == 0
    _, cache, entries = call(faulty.own_resources, compiled, tools)
    assert sorted(entries) == sorted(path.name for path in tools.iterdir())
    assert not Path(cache).exists()
