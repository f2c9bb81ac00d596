"""Turns of programs: their order, their length and when there are enough, on a clock that only steps move."""

from collections.abc import Iterator
from itertools import count, islice

import pytest

from bench.measure import turns
from bench.stats import FEWEST_SAMPLES, MINIMUM_SAMPLES, speedups
from bench.types import Settings


class Machine:
    """Slower and slower; its clock goes on with the steps that it is given."""

    def __init__(self, slowness: Iterator[float]) -> None:
        self.now_s = 100.0
        self.slowness = slowness

    def perf_counter(self) -> float:
        return self.now_s

    def turn(self, *steps_ms: float) -> turns.Turn:
        def take() -> list[float]:
            slowness = next(self.slowness)
            self.now_s += sum(steps_ms) * slowness / 1e3
            return [ms * slowness for ms in steps_ms]

        return take


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(1.01**number for number in count())
    monkeypatch.setattr(turns, "perf_counter", machine.perf_counter)
    return machine


def test_turns_alternate() -> None:
    taken: list[str] = []

    def turn(name: str, ms: float) -> list[float]:
        taken.append(name)
        return [ms, ms]

    found = list(islice(turns.rounds({"A": lambda: turn("A", 1.0), "B": lambda: turn("B", 2.0)}), 4))
    assert "".join(taken) == "ABBAABBA"
    assert found == [{"A": [1.0, 1.0], "B": [2.0, 2.0]}] * 4


def test_rounds_end_when_every_speedup_is_known(machine: Machine) -> None:
    """Each step is a per cent slower than the one before, and yet the speed-up is known to a per cent."""
    found = turns.take("A", {"A": machine.turn(10.0), "B": machine.turn(20.0)}, Settings(confidence=0.011))
    assert len(found["A"]) == len(found["B"]) == MINIMUM_SAMPLES
    assert all(ratio == pytest.approx(2.0, rel=0.0101) for ratio in speedups(found["B"], found["A"]))


def test_rounds_go_on_for_the_speedup_that_is_not_known(machine: Machine) -> None:
    def unsteady() -> Iterator[float]:
        for number in count():
            yield from (1.0, 1.0, 1.0 + number % 7) if number < 30 else (1.0, 1.0, 1.0)

    machine.slowness = unsteady()
    programs = {"A": machine.turn(1.0), "B": machine.turn(1.0), "C": machine.turn(1.0)}
    assert len(turns.take("A", programs, Settings(confidence=0.01, sample_budget_s=60.0))["A"]) > MINIMUM_SAMPLES


def test_rounds_end_with_the_budget(machine: Machine) -> None:
    programs = {"A": machine.turn(100.0, 300.0), "B": machine.turn(500.0)}
    machine.slowness = iter([1.0] * 100)
    found = turns.take("A", programs, Settings(confidence=1e-9, sample_budget_s=6.0))
    assert found == {"A": ((100.0, 300.0),) * 7, "B": ((500.0,),) * 7}


def test_whatever_the_budget_there_are_rounds_enough_for_an_interval(machine: Machine) -> None:
    programs = {"A": machine.turn(5000.0), "B": machine.turn(6000.0)}
    found = turns.take("A", programs, Settings(sample_budget_s=3.0))
    assert len(found["A"]) == len(found["B"]) == FEWEST_SAMPLES
