"""How an error is said in a line, and the errors of workers. Standard library only."""


class WorkerError(Exception):
    """The worker gave no result."""


class WorkerTimeoutError(WorkerError):
    """The worker had no result within its time and was killed."""


class WorkerCrashedError(WorkerError):
    """The worker died or raised; the message says of which signal or error."""


def describe(error: BaseException) -> str:
    """One line: the type and the first line of the message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
