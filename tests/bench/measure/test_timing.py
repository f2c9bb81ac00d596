"""Warm-up, samples and the stop rule, on a clock that only steps move."""

from collections.abc import Iterable, Iterator
from itertools import chain, repeat

import pytest
import torch

from bench.measure import timing
from bench.stats import FEWEST_SAMPLES, MINIMUM_SAMPLES, median_interval
from bench.types import Settings


class Machine:
    """A machine whose steps take the given times in ms, and its clock."""

    lead_in = 0

    def __init__(self, steps_ms: Iterable[float]) -> None:
        self.steps_ms: Iterator[float] = iter(steps_ms)
        self.now_s = 100.0
        self.calls: list[float] = []  # ms of each step so far
        self.chunks: list[int] = []  # samples asked for at once
        self.synchronized = 0

    def step(self) -> None:
        self.calls.append(next(self.steps_ms))
        self.now_s += self.calls[-1] / 1e3

    def perf_counter(self) -> float:
        return self.now_s

    def sample(self, step: timing.Step, count: int) -> list[float]:
        self.chunks.append(count)
        begun = len(self.calls)
        for _ in range(count):
            step()
        return self.calls[begun:]

    def synchronize(self) -> None:
        self.synchronized += 1


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Its steps take 10 ms unless a test says otherwise."""
    machine = Machine(repeat(10.0))
    monkeypatch.setattr(timing, "perf_counter", machine.perf_counter)
    return machine


def settings(**changes: float) -> Settings:
    return Settings(
        **{"confidence": 0.01, "warmup_budget_s": 5.0, "sample_minimum_s": 0.0, "sample_budget_s": 10.0, **changes}  # type: ignore[arg-type]
    )


# --- first call -------------------------------------------------------------------------------------------------------


def test_first_call_is_one_step_between_two_synchronizations(machine: Machine) -> None:
    machine.steps_ms = iter([2500.0])
    assert timing.first_call(machine.step, machine) == pytest.approx(2.5)
    assert (len(machine.calls), machine.synchronized) == (1, 2)


# --- warm-up ----------------------------------------------------------------------------------------------------------


def test_warm_up_ends_when_two_windows_agree(machine: Machine) -> None:
    machine.steps_ms = chain([500.0], [40.0] * 5, [20.0] * 5, repeat(10.0))
    steady, step_ms = timing.warm_up(machine.step, machine, settings())
    assert (steady, step_ms) == (True, 10.0)
    assert len(machine.calls) == 1 + 5 * 4, "two whole windows at 10 ms, after those at 40 and 20"


def test_warm_up_that_never_settles_ends_with_its_budget(machine: Machine) -> None:
    machine.steps_ms = (100.0 * 1.05**i for i in range(1000))
    steady, _ = timing.warm_up(machine.step, machine, settings(warmup_budget_s=3.0))
    assert not steady
    assert 3.0 <= sum(machine.calls) / 1e3 < 3.0 + sum(machine.calls[-5:]) / 1e3


def test_warm_up_gives_the_fastest_of_the_last_window(machine: Machine) -> None:
    machine.steps_ms = chain([1.0] * 6, repeat(10.0, 4), [9.0], repeat(10.0))
    steady, step_ms = timing.warm_up(machine.step, machine, settings(warmup_budget_s=0.05))
    assert (steady, step_ms) == (False, 9.0)


@pytest.mark.parametrize("budget_s", [1e-9, 0.0])
def test_no_time_still_gives_a_step(machine: Machine, budget_s: float) -> None:
    machine.now_s = 1e9  # a clock so late that the budget is below its resolution
    assert timing.warm_up(machine.step, machine, settings(warmup_budget_s=budget_s)) == (False, 10.0)
    timed = timing.measure(machine.step, machine, settings(sample_budget_s=budget_s), step_ms=10.0)
    assert timed.samples_ms == (10.0,) * 25


# --- samples ----------------------------------------------------------------------------------------------------------


def test_samples_stop_when_the_median_is_known(machine: Machine) -> None:
    timed = timing.measure(machine.step, machine, settings(), step_ms=10.0)
    assert timed.converged
    assert timed.samples_ms == (10.0,) * 25
    assert machine.chunks == [25], "a quarter of a second at once"
    assert timed.wall_ms == pytest.approx(10.0)


def test_samples_go_on_until_there_are_enough_to_tell(machine: Machine) -> None:
    timed = timing.measure(machine.step, machine, settings(sample_budget_s=100.0), step_ms=1000.0)
    assert timed.converged
    assert machine.chunks == [1] * MINIMUM_SAMPLES


def test_slow_steps_are_sampled_until_there_is_an_interval_whatever_the_budget(machine: Machine) -> None:
    machine.steps_ms = chain([10_000.0, 10_100.0, 9_900.0] * 100)
    timed = timing.measure(machine.step, machine, settings(sample_budget_s=3.0, confidence=0.1), step_ms=10_000.0)
    assert (len(timed.samples_ms), timed.converged) == (FEWEST_SAMPLES, True)
    interval = median_interval(timed.samples_ms)
    assert (interval.low, interval.high) == (9_900.0, 10_100.0), "the whole range: it covers the median to 97 %"
    timed = timing.measure(machine.step, machine, settings(sample_budget_s=3.0, confidence=0.005), step_ms=10_000.0)
    assert (len(timed.samples_ms), timed.converged) == (FEWEST_SAMPLES, False)


def test_steps_that_agree_by_luck_do_not_stop_it_early(machine: Machine) -> None:
    timed = timing.measure(machine.step, machine, settings(sample_budget_s=8.0), step_ms=1000.0)
    assert len(timed.samples_ms) == MINIMUM_SAMPLES


@pytest.mark.parametrize(("minimum_s", "samples"), [(0.2, 25), (0.9, 100), (60.0, 1000)])
def test_samples_go_on_for_the_least_time(machine: Machine, minimum_s: float, samples: int) -> None:
    """And never beyond the budget, which is 10 s: what is known is known then."""
    timed = timing.measure(machine.step, machine, settings(sample_minimum_s=minimum_s), step_ms=10.0)
    assert (len(timed.samples_ms), timed.converged) == (samples, True)


def test_samples_that_vary_end_with_the_budget_and_all_are_kept(machine: Machine) -> None:
    varied = [10.0 * 1.5 ** (i % 7) for i in range(10_000)]
    machine.steps_ms = iter(varied)
    timed = timing.measure(machine.step, machine, settings(confidence=1e-9, sample_budget_s=4.0), step_ms=10.0)
    assert not timed.converged
    assert timed.samples_ms == tuple(machine.calls) == tuple(varied[: len(machine.calls)]), "in order, untrimmed"
    assert sum(timed.samples_ms[:-25]) < 4000.0 <= sum(timed.samples_ms), "the budget ends between chunks"


def test_outliers_are_kept(machine: Machine) -> None:
    machine.steps_ms = chain([10.0, 900.0], repeat(10.0))
    assert timing.measure(machine.step, machine, settings(), step_ms=10.0).samples_ms[:3] == (10.0, 900.0, 10.0)


def test_there_is_an_end_to_samples(machine: Machine) -> None:
    machine.steps_ms = (0.1 * (1 + i % 2) for i in range(10**6))
    timed = timing.measure(machine.step, machine, settings(confidence=1e-9), step_ms=0.1)
    assert (len(timed.samples_ms), machine.chunks) == (5000, [2500, 2500])


def test_the_end_to_samples_waits_for_the_least_time(machine: Machine) -> None:
    machine.steps_ms = repeat(0.1)
    timed = timing.measure(machine.step, machine, settings(sample_minimum_s=2.0), step_ms=0.1)
    assert 20_000 <= len(timed.samples_ms) < 23_000


@pytest.mark.parametrize(("step_ms", "steps"), [(0.01, 100), (4.0, 25), (40.0, 2), (400.0, 1)])
def test_turns_are_short(machine: Machine, step_ms: float, steps: int) -> None:
    machine.steps_ms = repeat(step_ms)
    assert timing.turn(machine.step, machine, step_ms=step_ms) == [step_ms] * steps
    assert machine.chunks == [1, steps], "the first step finds the other side's data in the caches"


def test_a_clock_with_a_lead_in_needs_no_other_one(machine: Machine) -> None:
    machine.lead_in = 1
    assert timing.turn(machine.step, machine, step_ms=40.0) == [10.0] * 2
    assert machine.chunks == [2]


def test_a_step_of_seconds_needs_none_before_it(machine: Machine) -> None:
    machine.steps_ms = repeat(900.0)
    assert timing.turn(machine.step, machine, step_ms=900.0) == [900.0]
    assert machine.chunks == [1]


def test_wall_time_tells_what_the_device_does_not_see(machine: Machine) -> None:
    """Where the host is slower than the device, the samples are shorter than the wall time."""

    class Starved(Machine):
        def sample(self, step: timing.Step, count: int) -> list[float]:
            return [ms / 2 for ms in machine.sample(step, count)]

    timed = timing.measure(machine.step, Starved([]), settings(), step_ms=10.0)
    assert timed.samples_ms[0] == 5.0
    assert timed.wall_ms == pytest.approx(10.0)


def test_the_lead_in_is_a_step_of_the_wall_time(machine: Machine) -> None:
    class Leading(Machine):
        lead_in = 1

        def sample(self, step: timing.Step, count: int) -> list[float]:
            return machine.sample(step, 1 + count)[1:]

    timed = timing.measure(machine.step, Leading([]), settings(), step_ms=10.0)
    assert len(timed.samples_ms) == 25
    assert len(machine.calls) == 26
    assert timed.wall_ms == pytest.approx(10.0)


def test_cuda_clock_records_no_event_on_an_idle_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def record(self) -> None:
            log.append("record")

        def elapsed_time(self, _: "Event") -> float:
            log.append("read")
            return 1.5

    monkeypatch.setattr(timing, "_event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    assert timing.CudaClock().sample(lambda: log.append("step"), 2) == [1.5, 1.5]
    assert log == ["step", *2 * ["record", "step", "record"], "wait", "read", "read"]


def test_cpu_clock_times_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0, 3_000_000, 10_000_000, 10_500_000])
    monkeypatch.setattr(timing, "perf_counter_ns", lambda: next(ticks))
    calls: list[int] = []
    assert timing.CpuClock().sample(lambda: calls.append(1), 2) == [3.0, 0.5]
    assert calls == [1, 1]
