"""Runs functions in fresh processes, forked from a server that has torch imported but no CUDA context.

What goes wrong in a worker (out of memory, a segfault, a hang, a poisoned CUDA context) costs that worker alone.
Imports no torch: the parent stays light and can never hold a CUDA context.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from io import TextIOWrapper
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import monotonic
from typing import Any

from bench.workers import places
from bench.workers.errors import WorkerCrashedError, WorkerTimeoutError, describe

# Imported once by the server and inherited by every worker. The first chooses how Triton's kernels run, which has to
# be before the second imports Triton with torch.
_PRELOAD = ["kernels.launch.runtime", "bench.run.worker"]

SERVING = object()  # the answer of a worker that is ready for questions

_connection: Connection | None = None  # in a worker: its line to the parent


def announce(phase: str) -> None:
    """Tell the parent which phase this worker has entered; does nothing outside a worker."""
    if _connection is not None:
        _connection.send(("phase", phase))


def serve(reply: Callable[[], object]) -> None:
    """In a worker: reply to each question of the parent until it has no more. Outside a worker nobody asks."""
    if _connection is None:
        return
    _connection.send(("serving", None))
    while _connection.recv():
        _connection.send(("reply", reply()))


def call(
    entry: str,
    *arguments: object,
    timeout_s: float = 600.0,
    log: Path | None = None,
    on_phase: Callable[[str], None] = lambda _: None,
) -> Any:  # noqa: ANN401 - whatever the entry returns
    """Run `entry` ("package.module:function") in a process of its own and return what it returns, unpickled.

    The worker's output goes to `log` (or nowhere). On any way out, the worker, all its children and its temporary
    files are gone.

    Raises:
        WorkerTimeoutError: no result after `timeout_s` seconds.
        WorkerCrashedError: it died or raised.
    """
    with started(entry, *arguments, log=log) as worker:
        return worker.answer(timeout_s, on_phase)


@contextmanager
def started(entry: str, *arguments: object, log: Path | None = None) -> Iterator["Worker"]:
    """As `call`, for who wants to talk with the worker while it runs.

    Raises:
        WorkerCrashedError: it could not be started.
        ValueError: there is no place for temporary files.
    """
    places.settle()
    with TemporaryDirectory(prefix="resbench-worker-", ignore_cleanup_errors=True) as scratch:
        line, process = _started(entry, arguments, log, scratch)
        try:
            yield Worker(line, process)
        finally:
            _end(process)
            line.close()


class Worker:
    """A worker that runs its entry, seen from the parent."""

    def __init__(self, line: Connection, process: BaseProcess) -> None:
        self._line, self._process = line, process
        self._phase = "start-up"

    def answer(self, timeout_s: float, on_phase: Callable[[str], None] = lambda _: None) -> Any:  # noqa: ANN401 - whatever the entry returns
        """What the entry returns, or `SERVING` once it is ready for questions.

        Raises:
            WorkerTimeoutError: neither after `timeout_s` seconds.
            WorkerCrashedError: it died or raised.
        """
        deadline = monotonic() + timeout_s
        while True:
            if not wait([self._line, self._process.sentinel], timeout=max(0.0, deadline - monotonic())):
                raise WorkerTimeoutError(f"no result within {timeout_s:g} s, during {self._phase}")
            message = _receive(self._line)
            if message is None:
                self._process.join()
                raise WorkerCrashedError(f"{_cause(self._process.exitcode)} during {self._phase}")
            kind, value = message
            if kind == "phase":
                self._phase = value
                on_phase(value)
            elif kind == "error":
                raise WorkerCrashedError(f"{value} during {self._phase}")
            else:
                return SERVING if kind == "serving" else value

    def ask(self, timeout_s: float) -> Any:  # noqa: ANN401 - whatever it replies
        """The reply of a worker that serves. Raises as `answer`."""
        self._tell(more=True)
        return self.answer(timeout_s)

    def dismiss(self) -> None:
        """No more questions: the entry goes on."""
        self._tell(more=False)

    def _tell(self, *, more: bool) -> None:
        with suppress(OSError):  # it is dead: its next answer says of what
            self._line.send(more)


def _started(
    entry: str, arguments: tuple[object, ...], log: Path | None, scratch: str
) -> tuple[Connection, BaseProcess]:
    """A new worker, and our end of the line to it."""
    # asks NVML whether there is a GPU: asking CUDA, as some import might, would make the server unfit for forking
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    places.place_sockets()
    resource_tracker.ensure_running()  # started by the server's start it would unblock SIGINT
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()  # inherits the mask: Ctrl-C is for the parent, also while the server imports torch
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, entry, arguments, log, scratch))
    try:
        process.start()
    except (EOFError, OSError) as error:  # what it prints goes to our stderr
        raise WorkerCrashedError(f"the server of workers died while importing torch ({describe(error)})") from error
    theirs.close()
    return ours, process


def _receive(line: Connection) -> tuple[str, Any] | None:
    """The next message, or None when the worker died without one."""
    try:
        return line.recv() if line.poll() else None
    except (EOFError, OSError):  # OSError: it died in the middle of a message
        return None


def _end(process: BaseProcess) -> None:
    """Kill the worker's whole process group: compilers that it started as well."""
    process.kill()  # it may not lead its group yet
    if process.pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.join()


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


def _work(line: Connection, entry: str, arguments: tuple[object, ...], log: Path | None, scratch: str) -> None:
    """The life of a worker."""
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
    module, _, function = entry.partition(":")
    try:
        value = getattr(import_module(module), function)(*arguments)
    except Exception as error:  # noqa: BLE001 - the border of the process: whatever it is, the parent must hear of it
        sys.excepthook(type(error), error, error.__traceback__)
        line.send(("error", describe(error)))
    else:
        line.send(("value", value))


def _end_with_parent() -> None:
    """Do not outlive the parent, however it ended; the server lives as long as a worker does, and then ends too."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _redirect(log: Path | None) -> None:
    """Send what it prints to the log: each line at once, for it may be killed, and with every character."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
