"""Compares a case with eager by turns of their workers, so that a drift of the machine falls on all of them alike.

Each program stays in a process of its own: in one process they would share allocators, and be measured in a state that
none of them has alone. Imports no torch.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench.measure.turns import Turn, take
from bench.run.remote import worker
from bench.types import Case, Rounds, Settings
from bench.workers.errors import WorkerError
from bench.workers.parent import Terms, Worker


def compare(
    case: Case,
    candidate: Worker[Any],
    baselines: tuple[Case, ...],
    settings: Settings,
    on_phase: Callable[[str], None],
) -> tuple[dict[str, Rounds], str]:
    """Turns of a case, whose worker is ready for them, and of baselines in new workers beside it; by case key.

    Also why a baseline has none, where it cannot run beside the case: it may not fit the memory. That costs its
    comparison alone.
    """
    failures: list[str] = []
    with ExitStack() as stack:
        on_phase("baselines")
        workers: dict[str, Worker[Any]] = {case.key: candidate}
        for baseline in baselines:
            try:
                partner = stack.enter_context(Terms().started(worker.run_baseline, baseline, settings))
                partner.ready(settings.timeout_s)
            except (WorkerError, ValueError) as error:
                failures.append(f"{baseline.path} in {baseline.precision} does not run beside it: {error}")
            else:
                workers[baseline.key] = partner
        on_phase("turns")
        turns: dict[str, Turn] = {
            key: partial(partner.ask, settings.timeout_s, list) for key, partner in workers.items()
        }
        try:
            taken = take(case.key, turns, settings) if len(turns) > 1 else {}
        except WorkerError as error:  # if it is the case's own that failed, its answer will say so
            taken = {}
            failures.append(f"a turn failed: {error}")
    return taken, "; ".join(failures)
