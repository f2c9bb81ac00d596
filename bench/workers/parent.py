"""Runs functions in fresh processes, forked from a server that has torch imported but no CUDA context.

What goes wrong in a worker (out of memory, a segfault, a hang, a poisoned CUDA context) costs that worker alone.
Imports no torch: the parent stays light and can never hold a CUDA context.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar

from bench.workers import places
from bench.workers.child import SERVING, Serving, work
from bench.workers.errors import WorkerCrashedError, WorkerTimeoutError, describe

# Imported once by the server and inherited by every worker. The first chooses how Triton's kernels run, which has to
# be before the second imports Triton with torch.
_PRELOAD = ["kernels.launch.runtime", "bench.run.worker"]
_UNEXPECTED = {  # messages that come at the wrong time: a mistake of ours, which costs this worker alone
    "value": "it ended instead of replying", "reply": "it replied unasked", "serving": "it waits for questions",
}  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of a worker: its time, the log of what it prints (None: nowhere), and who hears of its phases."""

    timeout_s: float = 600.0
    log: Path | None = None
    on_phase: Callable[[str], None] = lambda _: None

    def call(self, entry: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        """Run a function of a `remote` module in a process of its own and return what it returns, unpickled.

        On any way out, the worker, all its children and its temporary files are gone.

        Raises:
            WorkerTimeoutError: no result within the time.
            WorkerCrashedError: it died or raised.
            ValueError: it refused what it was asked for, in its own words; or there is no place for temporary files.
        """
        with self.started(entry, *arguments, **named) as worker:
            return worker.answer(self.timeout_s, self.on_phase)

    @contextmanager
    def started(self, entry: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> Iterator["Worker[R]"]:
        """A worker that runs the function, to talk with while it does. Raises like `call`."""
        places.settle()
        with TemporaryDirectory(prefix="resbench-worker-", ignore_cleanup_errors=True) as scratch:
            line, process = _started(partial(entry, *arguments, **named), self.log, scratch)
            try:
                yield Worker(line, process)
            finally:
                _end(process)
                line.close()


def call(entry: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """`Terms.call` on the default terms."""
    return Terms().call(entry, *arguments, **named)


class Worker(Generic[R]):
    """A worker that runs its entry, seen from the parent."""

    def __init__(self, line: Connection, process: BaseProcess) -> None:
        self._line, self._process = line, process
        self._phase = "start-up"

    def answer(self, timeout_s: float, on_phase: Callable[[str], None] = lambda _: None) -> R:
        """The value that the entry returns.

        Raises:
            WorkerTimeoutError: nothing after `timeout_s` seconds.
            WorkerCrashedError: it died or raised, or waits for questions.
            ValueError: it refused what it was asked for.
        """
        value: R = self._hear({"value"}, timeout_s, on_phase)[1]
        return value

    def answer_or_serving(self, timeout_s: float, on_phase: Callable[[str], None]) -> R | Serving:
        """The value that the entry returns, or SERVING once it is ready for questions. Raises like `answer`."""
        kind, value = self._hear({"value", "serving"}, timeout_s, on_phase)
        answer: R | Serving = SERVING if kind == "serving" else value
        return answer

    def ready(self, timeout_s: float) -> None:
        """Return once it is ready for questions. Raises like `answer`."""
        self._hear({"serving"}, timeout_s)

    def ask(self, timeout_s: float, kind: type[T]) -> T:
        """The reply of a worker that serves, of this type. Raises like `answer`."""
        self._tell(more=True)
        _, value = self._hear({"reply"}, timeout_s)
        if not isinstance(value, kind):
            raise WorkerCrashedError(f"it replied with {type(value).__name__}, not {kind.__name__}")
        return value

    def dismiss(self) -> None:
        """End the questions: the entry goes on."""
        self._tell(more=False)

    def _tell(self, *, more: bool) -> None:
        with suppress(OSError):  # it is dead: its next answer says of what
            self._line.send(more)

    def _hear(
        self, kinds: set[str], timeout_s: float, on_phase: Callable[[str], None] = lambda _: None
    ) -> tuple[str, Any]:
        """The next message of one of these kinds; phases are passed on."""
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
            elif kind in kinds:
                return kind, value
            elif kind == "refused":
                refuse(value)
            elif kind == "error":
                raise WorkerCrashedError(f"{value} during {self._phase}")
            else:
                raise WorkerCrashedError(f"{_UNEXPECTED[kind]} during {self._phase}")


def refuse(words: str) -> NoReturn:
    """Raise the refusal of a worker, as if it had been raised here."""
    raise ValueError(words)


def _started(task: Callable[[], object], log: Path | None, scratch: str) -> tuple[Connection, BaseProcess]:
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
    process = context.Process(target=work, args=(theirs, task, log, scratch))
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
