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
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import monotonic
from typing import Any

_PRELOAD = ["bench.worker"]  # imports torch; the server imports it once and every worker inherits it

_connection: Connection | None = None  # in a worker: its line to the parent


class WorkerError(Exception):
    """The worker gave no result."""


class WorkerTimeoutError(WorkerError):
    """The worker had no result within its time and was killed."""


class WorkerCrashedError(WorkerError):
    """The worker died or raised; the message says of which signal or error."""


def announce(phase: str) -> None:
    """Tell the parent which phase this worker has entered; does nothing outside a worker."""
    if _connection is not None:
        _connection.send(("phase", phase))


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
    with TemporaryDirectory(prefix="resbench-worker-", ignore_cleanup_errors=True) as scratch:
        receiver, process = _started(entry, arguments, log, scratch)
        try:
            return _answer(receiver, process, timeout_s, on_phase)
        finally:
            _end(process)
            receiver.close()


def _started(
    entry: str, arguments: tuple[object, ...], log: Path | None, scratch: str
) -> tuple[Connection, BaseProcess]:
    """A new worker, and the end of its line to us."""
    # asks NVML whether there is a GPU: asking CUDA, as some import might, would make the server unfit for forking
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    resource_tracker.ensure_running()  # started by the server's start it would unblock SIGINT
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()  # inherits the mask: Ctrl-C is for the parent, also while the server imports torch
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, entry, arguments, log, scratch))
    try:
        process.start()
    except (EOFError, OSError) as error:  # what it prints goes to our stderr
        raise WorkerCrashedError(f"the server of workers died while importing torch ({describe(error)})") from error
    sender.close()
    return receiver, process


def _answer(receiver: Connection, process: BaseProcess, timeout_s: float, on_phase: Callable[[str], None]) -> Any:  # noqa: ANN401 - whatever the entry returns
    """Listen to a worker until it has a result, an error or no time left."""
    deadline = monotonic() + timeout_s
    phase = "start-up"
    while True:
        if not wait([receiver, process.sentinel], timeout=max(0.0, deadline - monotonic())):
            raise WorkerTimeoutError(f"no result within {timeout_s:g} s, during {phase}")
        message = _receive(receiver)
        if message is None:
            process.join()
            raise WorkerCrashedError(f"{_cause(process.exitcode)} during {phase}")
        kind, value = message
        if kind == "phase":
            phase = value
            on_phase(phase)
        elif kind == "error":
            raise WorkerCrashedError(f"{value} during {phase}")
        else:
            return value


def _receive(receiver: Connection) -> tuple[str, Any] | None:
    """The next message, or None when the worker died without one."""
    try:
        return receiver.recv() if receiver.poll() else None
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


def _work(sender: Connection, entry: str, arguments: tuple[object, ...], log: Path | None, scratch: str) -> None:
    """The life of a worker."""
    global _connection  # noqa: PLW0603 - one a process, set once
    _connection = sender
    os.setsid()  # a group of its own: Ctrl-C reaches the parent alone, which then ends the group
    Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    _redirect(log)
    faulthandler.enable()
    module, _, function = entry.partition(":")
    try:
        value = getattr(import_module(module), function)(*arguments)
    except Exception as error:  # noqa: BLE001 - the border of the process: whatever it is, the parent must hear of it
        sys.excepthook(type(error), error, error.__traceback__)
        sender.send(("error", describe(error)))
    else:
        sender.send(("value", value))


def _end_with_parent() -> None:
    """Do not outlive the parent, however it ended; the server lives as long as a worker does, and then ends too."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101
    parent.join()
    os.killpg(0, signal.SIGKILL)


def describe(error: BaseException) -> str:
    """One line: the type and the first line of the message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _redirect(log: Path | None) -> None:
    target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
