"""Compares a case with eager by turns of their workers, so that a drift of the machine falls on all of them alike.

Each program stays in a process of its own: in one process they would share allocators, and be measured in a state that
none of them has alone. Imports no torch.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from time import perf_counter

from bench.workers.errors import WorkerError
from bench.workers.parent import Worker, started
from bench.stats import FEWEST_SAMPLES, converged, speedups
from bench.types import Case, Rounds, Settings

Turn = Callable[[], list[float]]  # takes some steps; ms of each


def compare(
    case: Case, worker: Worker, baselines: tuple[Case, ...], settings: Settings, on_phase: Callable[[str], None]
) -> tuple[dict[str, Rounds], str]:
    """Turns of a case, whose worker is ready for them, and of baselines in new workers beside it; by case key.

    And why not, where a baseline cannot run beside the case: it may not fit the memory. That costs its comparison
    alone.
    """
    failures: list[str] = []
    with ExitStack() as stack:
        on_phase("baselines")
        workers = {case.key: worker}
        for baseline in baselines:
            try:
                partner = stack.enter_context(started("bench.run.worker:run_baseline", baseline, settings))
                partner.answer(settings.timeout_s)
            except WorkerError as error:
                failures.append(f"{baseline.path} in {baseline.precision} does not run beside it: {error}")
            else:
                workers[baseline.key] = partner
        on_phase("turns")
        turns: dict[str, Turn] = {key: partial(one.ask, settings.timeout_s) for key, one in workers.items()}
        try:
            taken = take(case.key, turns, settings) if len(turns) > 1 else {}
        except WorkerError as error:  # if it is the case's own that failed, its answer will say so
            taken = {}
            failures.append(f"a turn failed: {error}")
    return taken, "; ".join(failures)


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
