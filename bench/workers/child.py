"""The life of a worker, in its process. Imports no torch."""

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from enum import Enum
from io import TextIOWrapper
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

from bench.workers.entry import checked
from bench.workers.errors import describe, is_for_people


class Serving(Enum):
    """The sign that a worker is ready for questions."""

    SERVING = "serving"


SERVING = Serving.SERVING

_connection: Connection | None = None  # in a worker: its line to the parent


def announce(phase: str) -> None:
    """Tell the parent which phase this worker has entered; does nothing outside a worker."""
    if _connection is not None:
        _connection.send(("phase", phase))


def serve(reply: Callable[[], object]) -> None:
    """Reply, in a worker, to each question of the parent until it has no more. Outside a worker nobody asks."""
    if _connection is None:
        return
    _connection.send(("serving", None))
    while _connection.recv():
        _connection.send(("reply", reply()))


def work(line: Connection, task: Callable[[], object], log: Path | None, scratch: str) -> None:
    """Run the task as a worker, and send its value or its error to the parent."""
    global _connection  # noqa: PLW0603 - one a process, set once
    _connection = line
    os.setsid()  # a group of its own: Ctrl-C reaches the parent alone, which then ends the group
    Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]  # the parent's
    try:
        _redirect(log)
    except OSError as error:
        line.send(("error", f"its log cannot be written ({describe(error)})"))
        return
    faulthandler.enable()
    try:
        value = checked(task)
    except Exception as error:  # noqa: BLE001 - the border of the process: whatever it is, the parent must hear of it
        sys.excepthook(type(error), error, error.__traceback__)
        refused = isinstance(error, ValueError) and is_for_people(error)
        line.send(("refused", str(error)) if refused else ("error", describe(error)))
    else:
        line.send(("value", value))


def _end_with_parent() -> None:
    """Do not outlive the parent, however it ended; the server lives as long as a worker does, and then ends too."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _redirect(log: Path | None) -> None:
    """Send what the worker prints to the log: each line at once, for it may be killed, and with every character."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
