"""Times steps: warm-up until steady, then samples until the median is known well enough or the time budget ends."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter, perf_counter_ns
from typing import Protocol

import torch

from bench.stats import FEWEST_SAMPLES, MINIMUM_SAMPLES, converged, is_steady
from bench.types import Device, Settings

Step = Callable[[], object]

_WINDOW = 5  # steps whose median is compared with that of the steps before them, during warm-up
_STEADY = 0.01  # relative difference of those medians that counts as steady
_CHUNK_S = 0.25  # samples are taken in chunks of about this long; the stop rule is asked between chunks
_MAX_SAMPLES = 5000  # once the least time is over
_TURN_S = 0.1  # short against the drifts of clocks and of neighbours
_REHEARSAL_STEPS = 3  # of a program that only takes turns
_LONG_STEP_MS = 500.0  # a cache of some 10 MB is full again after some ms
_TURN_STEPS = 100  # at most, for the size of the journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Every sample in order, in ms of one step, and how the sampling ended."""

    samples_ms: tuple[float, ...]
    wall_ms: float
    converged: bool


class Clock(Protocol):
    """Times single steps on one kind of device."""

    lead_in: int  # untimed steps that `sample` runs before the timed ones

    def sample(self, step: Step, count: int) -> list[float]:
        """Milliseconds of each of `count` successive steps; the device is idle before and after."""

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""


class CpuClock:
    """Steps on the CPU end when they return."""

    lead_in = 0

    def sample(self, step: Step, count: int) -> list[float]:
        times = []
        for _ in range(count):
            start = perf_counter_ns()
            step()
            times.append((perf_counter_ns() - start) / 1e6)
        return times

    def synchronize(self) -> None:
        pass


class CudaClock:
    """An event pair around each step on the current stream; the host waits only after the last one.

    A step goes before them: an idle stream would take the first event at once, and the time between it and the first
    kernel would be the host's.
    """

    lead_in = 1

    def sample(self, step: Step, count: int) -> list[float]:
        pairs = [(_event(), _event()) for _ in range(count)]
        step()
        for start, end in pairs:
            start.record()
            step()
            end.record()
        self.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]

    def synchronize(self) -> None:
        torch.cuda.synchronize()


CLOCKS: dict[Device, type[CpuClock] | type[CudaClock]] = {"cpu": CpuClock, "cuda": CudaClock}


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def first_call(step: Step, clock: Clock) -> float:
    """Seconds of the first call: compilation, autotuning, cuDNN search, graph capture."""
    clock.synchronize()
    start = perf_counter()
    step()
    clock.synchronize()
    return perf_counter() - start


def warm_up(step: Step, clock: Clock, settings: Settings) -> tuple[bool, float]:
    """Run until the medians of successive windows agree or the budget ends: (steady, ms of a step by then)."""
    times: list[float] = []
    deadline = perf_counter() + settings.warmup_budget_s
    while not times or (perf_counter() < deadline and not is_steady(times, _WINDOW, _STEADY)):
        times += clock.sample(step, _WINDOW if times else 1)
    return is_steady(times, _WINDOW, _STEADY), min(times[-_WINDOW:])


def rehearse(step: Step, clock: Clock) -> float:
    """Milliseconds of a step, from a few of them that follow the first call; a long one tells alone."""
    times = clock.sample(step, 1)
    if times[0] < _LONG_STEP_MS:
        times += clock.sample(step, _REHEARSAL_STEPS - 1)
    return median(times)


def turn(step: Step, clock: Clock, *, step_ms: float) -> list[float]:
    """A short run of steps, one side of a comparison by turns: ms of each. `step_ms` sets their number.

    One step goes before them, untimed, if the clock's own does not: it finds caches that are full of the other side's
    data. Where a step is so long that refilling them does not count, it would only halve the number of turns.
    """
    if not clock.lead_in and step_ms < _LONG_STEP_MS:
        clock.sample(step, 1)
    return clock.sample(step, min(_TURN_STEPS, max(1, round(_TURN_S * 1e3 / step_ms))))


def measure(step: Step, clock: Clock, settings: Settings, *, step_ms: float) -> Timing:
    """Sample until the 95 % interval of the median is within `settings.confidence` of it, or the budget ends.

    Sampling lasts `settings.sample_minimum_s` at least and, whatever the budget, until there are samples enough for an
    interval. All samples are kept. `step_ms`, from the warm-up, sets the length of a chunk.
    """
    chunk = max(1, round(_CHUNK_S * 1e3 / step_ms))
    least_s = min(settings.sample_minimum_s, settings.sample_budget_s)
    samples: list[float] = []
    began, sampling_s, steps = perf_counter(), 0.0, 0
    while True:
        before = perf_counter()
        samples += clock.sample(step, chunk)
        sampling_s += perf_counter() - before
        steps += clock.lead_in + chunk
        elapsed_s = perf_counter() - began
        over = elapsed_s >= settings.sample_budget_s or len(samples) >= _MAX_SAMPLES
        known = converged(samples, settings.confidence, least=FEWEST_SAMPLES if over else MINIMUM_SAMPLES)
        if elapsed_s >= least_s and (known or (over and len(samples) >= FEWEST_SAMPLES)):
            return Timing(samples_ms=tuple(samples), wall_ms=sampling_s * 1e3 / steps, converged=known)
