"""An error in one line, whether it is ours, and the errors of workers. Standard library only."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = tuple(f"{ROOT / package}{'/'}" for package in ("bench", "kernels", "resnet"))  # where our files lie


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


def is_for_people(error: ValueError) -> bool:
    """Whether our code raised it, to say what was wrong: one that a library raised is a mistake of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(OURS)


@contextmanager
def explained(what: str, hint: str) -> Iterator[None]:
    """Tell a person what the operating system refused, and what to do.

    Raises:
        ValueError: in place of an OSError, e.g. `cannot write a.csv: Permission denied; name another file`.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{what}: {error.strerror}; {hint}") from error
