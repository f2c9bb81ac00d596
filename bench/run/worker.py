"""What runs inside a worker process: each public function here is an entry of `bench.workers.parent.call`.

The fork server imports this module once, and with it torch and its compiler, so that importing them is no part of a
case's start-up or of its compile time. No import here may create a CUDA context.
"""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
import torch._inductor.compile_fx
from torch import Tensor
from torch._dynamo.utils import counters

from bench.machine import environment, ceilings as limits
from bench.parity import locate, verdict as parity, reference
from bench.measure import memory, telemetry, timing
from bench.workers.errors import describe
from bench.measure.inputs import make_batch, make_model, make_program
from bench.workers.parent import announce, serve
from bench.machine.requirements import why_unsupported, why_untimed
from bench.types import (
    Case,
    Ceilings,
    Cost,
    Device,
    Environment,
    Measurement,
    ParityResult,
    Reference,
    Result,
    Settings,
    Status,
)
from resnet.paths import PATHS_BY_NAME
from resnet.program import Program

_USABLE_MEMORY = 0.95  # of what is free, for a case on the CPU: it is refused memory before the machine is in trouble
_PROBE_STEPS = 2  # the second step also holds what the optimizer keeps


def survey(device: Device, weights: str) -> Environment:
    """Where this is, and what is loaded."""
    return environment.collect(device, weights=weights)


def ceilings(device: Device, kept: Ceilings | None) -> Ceilings:
    """What this device reaches: what was kept, unless it is beaten, or measured now, which takes some seconds."""
    return kept if kept and not limits.beaten(kept, device) else limits.measure_ceilings(device)


def inspect(cases: tuple[Case, ...]) -> dict[str, tuple[Cost, str]]:
    """By key: the least work of each case, and why it cannot run on this machine (empty if it can)."""
    return {
        case.key: (
            limits.cost(case.model, case.mode, case.precision, case.batch_size, case.image_size),
            why_unsupported(case, PATHS_BY_NAME[case.path]) or "",
        )
        for case in cases
    }


def weights_problem(models: tuple[str, ...], weights: str) -> str:
    """Why `weights` cannot be loaded into one of the models; empty if they can."""
    try:
        for model in models:
            make_model(model, 0, weights)
    except ValueError as error:
        return str(error)
    return ""


def prepare_reference(case: Case, settings: Settings, rates: Ceilings, scratch: Path) -> Reference:
    """What the case is checked against, in a process of its own: it leaves no trace in the case's memory."""
    announce("reference")
    with _own_resources(case):
        return reference.prepare(case, settings, rates, scratch)


def prepare_compiler(device: Device, tools: Path) -> None:
    """Let Inductor find out in `tools` what it finds out once a machine and keeps for all programs.

    Which vector instructions work, Triton's launcher, and in a place of its own precompiled headers: some seconds that
    are no part of the time that compiling one network takes.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tools)
    torch.compile(torch.neg)(torch.ones(64, device=device))


def run_case(case: Case, settings: Settings, against: Reference, tools: Path | None, turns: bool) -> Result:
    """Check a case, and if it is to be measured time it and check it once more. Running out of memory is a result.

    Where it is measured and `turns` are wanted, it serves them (`isolation.serve`) before the second check. `tools` is
    the folder of `prepare_compiler`, for a case that compiles.
    """
    run = _CaseRun(case, settings, against, turns=turns)
    with _own_resources(case, tools), memory.freed_is_kept(case.device):
        try:
            return run.check_and_measure()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not memory.is_out_of_memory(error):
                raise
            return run.result(status=Status.OOM, reason=describe(error))


def run_baseline(case: Case, settings: Settings) -> None:
    """Serve turns of a case, for another one to be compared with.

    A few steps are warm-up enough: the other one has warmed the device, and `timing.turn` sees to the caches.
    """
    with _own_resources(case), memory.freed_is_kept(case.device):
        program = make_program(case, settings)
        images, labels = make_batch(case.batch_size, case.image_size, settings.seed, case.device)
        step, clock = partial(program.step, program.place(images), labels), timing.CLOCKS[case.device]()
        timing.first_call(step, clock)
        serve(partial(timing.turn, step, clock, step_ms=timing.rehearse(step, clock)))


def fits(case: Case, settings: Settings, tools: Path | None) -> bool:
    """Whether steps of the case fit the device's memory. `tools` as in `run_case`."""
    with _own_resources(case, tools):
        try:
            program = make_program(case, settings)
            images, labels = make_batch(case.batch_size, case.image_size, settings.seed, case.device)
            announce("probe")
            for _ in range(_PROBE_STEPS):
                program.step(program.place(images), labels)
            timing.CLOCKS[case.device]().synchronize()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not memory.is_out_of_memory(error):
                raise
            return False
    return True


class _CaseRun:
    """One case on its way through its phases; `phases_s` has the wall seconds of each."""

    def __init__(self, case: Case, settings: Settings, against: Reference, *, turns: bool) -> None:
        self.case, self.settings, self.against, self.turns = case, settings, against, turns
        self.phases_s: dict[str, float] = {}
        self.result = partial(Result, case=case, phases_s=self.phases_s)
        self.clock: timing.Clock = timing.CLOCKS[case.device]()
        self.foreign_pids = telemetry.snapshot() if case.device == "cuda" else frozenset()
        self.baseline_bytes = memory.baseline()
        self.errors: list[dict[str, float]] = []  # of each check so far

    def check_and_measure(self) -> Result:
        case, settings = self.case, self.settings
        with self._phase("build"):
            program = make_program(case, settings)
            images, labels = make_batch(case.batch_size, case.image_size, settings.seed, case.device)
            images = program.place(images)
        with self._phase("first call"):
            first_call_s = timing.first_call(partial(program.step, images, labels), self.clock)
        measurement = None
        untimed = why_untimed(case, PATHS_BY_NAME[case.path])
        verdict = self._check(program)
        if verdict.passed:
            if case.kind == "measure" and not untimed:
                measurement = self._measure(program, images, labels, first_call_s)
            verdict = self._check(program)
        status, reason = _status(verdict, measurement, settings, untimed if case.kind == "measure" else "")
        return self.result(
            status=status,
            reason=reason,
            measurement=measurement if verdict.passed else None,
            parity=verdict,
            choices=program.choices,
        )

    def _check(self, program: Program) -> ParityResult:
        """Check against the reference's next trajectory. The verdict is over all checks so far."""
        case, settings, against, number = self.case, self.settings, self.against, len(self.errors)
        with self._phase("parity"):
            if against.batch_size != case.batch_size:  # compiled and captured programs have one batch size
                program = make_program(case, settings)
            state = make_model(case.model, settings.seed, settings.weights).state_dict()
            inputs = reference.inputs(case, settings, against.batch_size, number)
            self.errors.append(parity.errors(program, state, inputs, Path(against.files[number])))
            return parity.verdict(
                list(zip(self.errors, against.eager_errors, strict=False)),
                case=case,
                batch_size=against.batch_size,
                note=against.note,
                locate=partial(locate.first_diverging_layer, case, settings, against.batch_size),
            )

    def _measure(self, program: Program, images: Tensor, labels: Tensor, first_call_s: float) -> Measurement:
        step = partial(program.step, images, labels)
        with self._phase("warm-up"):
            steady, step_ms = timing.warm_up(step, self.clock, self.settings)
        sampler = _sampler(self.case, self.foreign_pids)
        recompilations, graph_breaks = _compiler_counts()
        with self._phase("sampling"), sampler or nullcontext():
            timed = timing.measure(step, self.clock, self.settings, step_ms=step_ms)
        recompiled, broken = _compiler_counts()
        if self.turns:
            torch.cuda.empty_cache()  # eager comes beside it
            serve(partial(timing.turn, step, self.clock, step_ms=step_ms))
        with self._phase("memory"):
            used = memory.measure(program, images, labels, baseline_bytes=self.baseline_bytes)
        count = len(timed.samples_ms)
        return Measurement(
            samples_ms=timed.samples_ms,
            wall_ms=timed.wall_ms,
            first_call_s=first_call_s,
            steady=steady,
            converged=timed.converged,
            recompilations=recompiled - recompilations,
            graph_breaks=broken - graph_breaks,
            memory=used,
            telemetry=sampler.result(count, count * timed.wall_ms / 1e3) if sampler else None,
        )

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        announce(name)
        start = perf_counter()
        try:
            yield
        finally:
            self.phases_s[name] = self.phases_s.get(name, 0.0) + perf_counter() - start


def _status(
    verdict: ParityResult, measurement: Measurement | None, settings: Settings, untimed: str = ""
) -> tuple[Status, str]:
    """The status of a case that ran to its end, and the reason: the worst of all that is to be said of it."""
    return next(_marks(verdict, measurement, settings), (Status.NOT_TIMED, untimed) if untimed else (Status.VALID, ""))


def _marks(verdict: ParityResult, measurement: Measurement | None, settings: Settings) -> Iterator[tuple[Status, str]]:
    """What keeps a result from being valid, the worst first."""
    if not verdict.passed:
        first = verdict.failures[0]
        yield (
            Status.PARITY_FAILED,
            (
                f"{verdict.failed} of {verdict.tensors} tensors are wrong; the first is {first.tensor}, "
                f"in {verdict.first_layer}: error {first.error:.2g}, allowed {first.tolerance:.2g}, "
                f"eager's {first.eager_error:.2g}"
            ),
        )
    if measurement is None:
        return
    if measurement.recompilations or measurement.graph_breaks:
        counts = f"{measurement.recompilations} recompilations and {measurement.graph_breaks} graph breaks"
        yield Status.RECOMPILED, f"{counts} while sampling"
    seen = measurement.telemetry
    if seen is not None and seen.other_processes:
        yield Status.SHARED_GPU, f"{seen.other_processes} other processes on the GPU while sampling"
    if seen is not None and seen.throttle_reasons:
        yield Status.THROTTLED, ", ".join(seen.throttle_reasons)
    if not measurement.converged:
        yield (
            Status.UNSTABLE,
            (
                f"the 95 % interval of the median is not within {settings.confidence:.1%} of it "
                f"after {len(measurement.samples_ms)} samples in {settings.sample_budget_s:g} s"
            ),
        )


def _sampler(case: Case, foreign_pids: frozenset[int]) -> telemetry.Sampler | None:
    return telemetry.Sampler(telemetry.gpu_uuid(), before=foreign_pids) if case.device == "cuda" else None


def _compiler_counts() -> tuple[int, int]:
    """Graphs compiled and graph breaks met so far in this process."""
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


@contextmanager
def _own_resources(case: Case, tools: Path | None = None) -> Iterator[None]:
    """A compile cache of the case's own, and on the CPU a limit of its memory.

    The cache holds nothing but `tools`, so that compile times of the network are cold.
    """
    if case.device == "cpu":
        limit = int(memory.free_bytes("cpu") * _USABLE_MEMORY)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with TemporaryDirectory(prefix="resbench-compile-", ignore_cleanup_errors=True) as cache:
        if tools is not None:
            copytree(tools, cache, dirs_exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        yield
