"""The exit codes of every command, and what they mean. Imports no torch."""

from enum import IntEnum

from bench.types import FINE, MARKS, Run, Status


class Exit(IntEnum):
    """The exit code of a command."""

    VALID = 0
    PARITY_FAILED = 1
    USAGE = 2
    FAILED = 3


EXIT_CODES = {
    Exit.VALID: "nothing failed (a mark such as unstable or throttled is not a failure, nor is what cannot run here)",
    Exit.PARITY_FAILED: "parity failed in at least one case",
    Exit.USAGE: "bad usage: nothing was run or overwritten",
    Exit.FAILED: "cases failed or were not run (oom, timeout, crashed, Ctrl-C, --budget) or, with --strict, are marked",
}
UNJUDGED = {  # of commands that judge no run
    Exit.VALID: "done",
    Exit.USAGE: "bad usage: nothing was overwritten",
    Exit.FAILED: "torch does not work here, resbench itself failed, or Ctrl-C",
}


def exit_code(run: Run, *, strict: bool = False) -> Exit:
    """The exit code of a run: a failed parity outweighs every other failure.

    A mark is no failure, nor is what the preset's own budget has left out; with `strict` both are.
    """
    statuses = {result.status for result in run.results}
    if Status.PARITY_FAILED in statuses:
        return Exit.PARITY_FAILED
    if statuses - FINE - MARKS or (run.pending and not run.left_out_as_planned):
        return Exit.FAILED
    if strict and (statuses & MARKS or run.pending):
        return Exit.FAILED
    return Exit.VALID
