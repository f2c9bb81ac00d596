"""Rounds of turns of several programs, so that a drift of the machine falls on all of them alike. Imports no torch."""

from collections.abc import Callable, Iterator
from itertools import cycle
from time import perf_counter

from bench.stats import FEWEST_SAMPLES, converged, speedups
from bench.types import Rounds, Settings

Turn = Callable[[], list[float]]  # takes some steps; ms of each


def take(candidate: str, turns: dict[str, Turn], settings: Settings) -> dict[str, Rounds]:
    """Rounds until the candidate's speed-up over each of the others is known, or the sample budget ends.

    Known: the 95 % interval of its median is within `settings.confidence` of it. Whatever the budget, there are rounds
    enough for an interval.
    """
    taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in turns}
    deadline = perf_counter() + settings.sample_budget_s
    for samples in rounds(turns):
        for name, steps_ms in samples.items():
            taken[name].append(tuple(steps_ms))
        over = (speedups(taken[name], taken[candidate]) for name in turns if name != candidate)
        enough = len(taken[candidate]) >= FEWEST_SAMPLES
        if (enough and perf_counter() >= deadline) or all(converged(ratios, settings.confidence) for ratios in over):
            break
    return {name: tuple(turns_ms) for name, turns_ms in taken.items()}


def rounds(turns: dict[str, Turn]) -> Iterator[dict[str, list[float]]]:
    """Endless rounds of one turn of each, in the order A B C, C B A, A B C, ..."""
    for names in cycle((tuple(turns), tuple(reversed(turns)))):
        yield {name: turns[name]() for name in names}
