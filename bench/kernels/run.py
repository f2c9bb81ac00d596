"""Measures ops one by one, in a worker that is replaced when it dies. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from bench.kernels.types import KernelRun, Op, Outcome, Request, Survey
from bench.workers.entry import remote
from bench.workers.errors import WorkerError, WorkerTimeoutError, describe
from bench.workers.parent import Terms

if TYPE_CHECKING:
    from bench.kernels import worker
else:
    worker = remote("bench.kernels.worker")

OP_TIMEOUT_S = 600.0  # parity, compilation and samples of one op
SURVEY_TIMEOUT_S = 120.0


def survey(request: Request, on_phase: Callable[[str], None] = lambda _: None) -> Survey:
    """The machine, and the ops that the request means here.

    Raises:
        ValueError: the request cannot be met, and why.
        WorkerError: torch does not work here.
    """
    return Terms(timeout_s=SURVEY_TIMEOUT_S, on_phase=on_phase).call(worker.survey, request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """Functions to be called before and after each op."""

    started: Callable[[Op], None]
    finished: Callable[[Outcome], None]


def run(where: Survey, callbacks: Callbacks, *, command: str, budget_s: float | None = None) -> KernelRun:
    """Measure until every op has an outcome, the budget ends or Ctrl-C: what was measured until then is the run."""
    began = monotonic()
    deadline = None if budget_s is None else began + budget_s
    outcomes: list[Outcome] = []
    interrupted = ""
    try:
        while len(outcomes) < len(where.ops) and not interrupted:
            interrupted = _sitting(where, outcomes, callbacks, deadline)
    except KeyboardInterrupt:
        interrupted = "Ctrl-C"
    return KernelRun(
        survey=where,
        outcomes=tuple(outcomes),
        command=command,
        wall_s=monotonic() - began,
        interrupted=interrupted,
    )


def _sitting(where: Survey, outcomes: list[Outcome], callbacks: Callbacks, deadline: float | None) -> str:
    """Ask one worker for outcomes until there are all of them, or it dies, which costs the op it was at.

    Returns why no other worker should go on, or nothing.
    """
    pending = where.ops[len(outcomes) :]
    with Terms().started(worker.serve_ops, where, pending) as child:
        child.ready(OP_TIMEOUT_S)
        for op in pending:
            left_s = OP_TIMEOUT_S if deadline is None else deadline - monotonic()
            if left_s <= 0:
                return "budget"
            callbacks.started(op)
            try:
                outcome = child.ask(min(left_s, OP_TIMEOUT_S), Outcome)
            except WorkerTimeoutError as error:
                if left_s < OP_TIMEOUT_S:
                    return "budget"
                _note(Outcome(op=op, failure=str(error)), outcomes, callbacks)
                return ""
            except WorkerError as error:
                _note(Outcome(op=op, failure=str(error)), outcomes, callbacks)
                return ""
            except Exception as error:  # noqa: BLE001 - whatever it is, it costs this op alone
                _note(Outcome(op=op, failure=describe(error)), outcomes, callbacks)
                return ""
            _note(outcome, outcomes, callbacks)
    return ""


def _note(outcome: Outcome, outcomes: list[Outcome], callbacks: Callbacks) -> None:
    outcomes.append(outcome)
    callbacks.finished(outcome)
