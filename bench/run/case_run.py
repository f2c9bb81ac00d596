"""One case on its way through its phases, in its worker."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
import torch._inductor.compile_fx
from torch import Tensor
from torch._dynamo.utils import counters

from bench.machine import nvml
from bench.machine.requirements import why_untimed
from bench.measure import memory, telemetry, timing
from bench.measure.inputs import make_batch, make_model, make_program
from bench.parity import locate, reference, trajectory
from bench.parity import verdict as parity
from bench.types import (
    Case,
    Measurement,
    ParityResult,
    Reference,
    Result,
    Settings,
    Status,
)
from bench.workers.child import announce, serve
from resnet.paths import PATHS_BY_NAME
from resnet.program import Program


class CaseRun:
    """One case on its way through its phases; `phases_s` has the wall seconds of each."""

    def __init__(self, case: Case, settings: Settings, against: Reference, *, turns: bool) -> None:
        self.case, self.settings, self.against, self.turns = case, settings, against, turns
        self.phases_s: dict[str, float] = {}
        self.result = partial(Result, case=case, phases_s=self.phases_s)
        self.clock: timing.Clock = timing.CLOCKS[case.device]()
        self.foreign_pids = nvml.snapshot() if case.device == "cuda" else frozenset()
        self.baseline_bytes = memory.baseline()
        self.errors: list[dict[str, float]] = []  # of each check so far

    def check_and_measure(self) -> Result:
        case, settings = self.case, self.settings
        with self._phase("build"):
            program = make_program(case, settings)
            images, labels = make_batch(case, settings.seed)
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
        status, reason = status_of(verdict, measurement, settings, untimed if case.kind == "measure" else "")
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
            self.errors.append(trajectory.errors(program, state, inputs, Path(against.files[number])))
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


def status_of(
    verdict: ParityResult, measurement: Measurement | None, settings: Settings, untimed: str = ""
) -> tuple[Status, str]:
    """The worst status that applies to a case that ran to its end, and the reason."""
    return next(
        marks_of(verdict, measurement, settings), (Status.NOT_TIMED, untimed) if untimed else (Status.VALID, "")
    )


def marks_of(
    verdict: ParityResult, measurement: Measurement | None, settings: Settings
) -> Iterator[tuple[Status, str]]:
    """The statuses that keep a result from being valid, with their reasons, the worst first."""
    if not verdict.passed:
        first, layer = verdict.failures[0], verdict.first_layer and f", in {verdict.first_layer}"
        yield (
            Status.PARITY_FAILED,
            (
                f"{verdict.failed} of {verdict.tensors} tensors are wrong; the first is {first.tensor}{layer}: "
                f"error {first.error:.2g}, allowed {first.tolerance:.2g}, eager's {first.eager_error:.2g}"
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
    return telemetry.Sampler(nvml.gpu_uuid(), before=foreign_pids) if case.device == "cuda" else None


def _compiler_counts() -> tuple[int, int]:
    """Graphs compiled and graph breaks met so far in this process."""
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
