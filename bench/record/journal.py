"""The append-only record of a run: `results.jsonl` in the run directory, one fsynced JSON object a line.

A line is a dataclass of `bench.types` with its kind beside its fields in `type`; the first line is the plan, with the
version of the schema. JSON has no infinity, so an infinite float is the text "Infinity" and is read back as a float;
NaN is refused. A line counts once its newline is on the disk: what a power cut left behind the last one is dropped.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from errno import ENOSPC
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from bench.record.lines import _NAMES, SCHEMA, JournalRecord, line_of, load
from bench.record.provenance import differences
from bench.types import Ceilings, Environment, Plan, Result, Run, Session, Status
from bench.workers.errors import explained
from bench.workers.places import TEMPORARY

JOURNAL_NAME = "results.jsonl"
LOCK_NAME = ".lock"


class Journal:
    """The journal of one run directory, open for appending and locked against a second writer.

    The lock belongs to the operating system and ends with the process, also after kill -9. `Journal.create` and
    `Journal.resume` open it; use the journal as a context manager to close it.
    """

    def __init__(self, directory: Path, plan: Plan, lock: FileLock, notices: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.plan = plan
        self.notices = notices  # what opening it did that a person should know
        self._path = directory / JOURNAL_NAME
        self._lock = lock
        self._statuses: dict[tuple[str, str], Status] = {}
        self._environments: dict[str, Environment] = {}  # by hash
        self._file = self._path.open("ab", buffering=0)

    @classmethod
    def create(cls, directory: Path, plan: Plan) -> Self:
        """Start the journal of a new run in a directory that is empty or does not exist.

        Raises:
            ValueError: the directory is not empty, cannot be written to, or another run writes there.
        """
        with explained(f"cannot write to {directory}", "name another directory"):
            directory.mkdir(parents=True, exist_ok=True)
            _require_empty(directory)
            with _locked(directory) as lock:
                _require_empty(directory)  # again: now nobody else can begin here
                journal = cls(directory, plan, lock)
                journal._write({"type": "plan", "schema": SCHEMA}, plan)
                for folder in (directory, directory.absolute().parent):
                    _sync(folder)
        return journal

    @classmethod
    def resume(cls, directory: Path) -> Self:
        """Go on with the journal of an earlier run. A torn last line is cut off the file, with a notice.

        Raises:
            ValueError: there is no journal, it is corrupt, it cannot be written to, or another run writes there.
        """
        path = directory / JOURNAL_NAME
        if not path.is_file():
            raise ValueError(f"nothing to resume: {path} does not exist; name the directory of an earlier run")
        with explained(f"cannot write to {path}", "make it writable, or copy the run"), _locked(directory) as lock:
            contents = load(path)
            os.truncate(path, contents.size)
            journal = cls(directory, contents.plan, lock, contents.notices)
        for record in contents.records:
            journal._note(record)
        return journal

    def append(self, record: JournalRecord) -> None:
        """Write one record as one line; on return it is on the disk.

        Raises:
            UnfitRecordError: the record holds NaN, or what is no JSON. The journal is then as it was before.
            ValueError: the disk refused the line. The journal is then as it was before, too.
        """
        hint = "what was measured before is safe: make room, then go on with --resume"
        with explained(f"cannot write to {self._path}", hint):
            self._write({"type": _NAMES[type(record)]}, record)
        self._note(record)

    def statuses(self, environment_hash: str) -> dict[str, Status]:
        """The status of each case in that environment, by its key: that of its last result."""
        return {case: status for (case, where), status in self._statuses.items() if where == environment_hash}

    def left_out(self, environment: Environment) -> tuple[str, ...]:
        """Notices about results that were measured in other environments than this, and do not count."""
        return _left_out(environment, self._environments, (where for _, where in self._statuses))

    def close(self) -> None:
        """Close the file and let another run in."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _note(self, record: JournalRecord) -> None:
        if isinstance(record, Result):
            self._statuses[record.case.key, record.environment_hash] = record.status
        elif isinstance(record, Environment):
            self._environments[record.hash] = record

    def _write(self, head: dict[str, object], record: Plan | JournalRecord) -> None:
        line = line_of(head, record)
        size = os.fstat(self._file.fileno()).st_size
        try:
            _write_whole(self._file, line)
        except OSError:
            os.ftruncate(self._file.fileno(), size)  # a torn line in the middle would spoil the journal
            raise


def read(directory: Path) -> Run:
    """The run as its journal tells it: the last result of each case in the newest environment, in the plan's order.

    Takes no lock and changes no file, so it also reads a run that is still going on.

    Raises:
        ValueError: the journal is missing, empty or corrupt; the message names the file and the line.
    """
    path = directory / JOURNAL_NAME
    with explained(f"cannot read {path}", "name the directory of a run"):
        contents = load(path)
    environment: Environment | None = None
    environments: dict[str, Environment] = {}
    ceilings: dict[str, Ceilings] = {}
    results: dict[tuple[str, str], Result] = {}
    sessions: list[Session] = []
    for record in contents.records:
        match record:
            case Environment():
                environment = environments[record.hash] = record
            case Ceilings():
                ceilings[_hash(environment)] = record
            case Result():
                results[record.case.key, record.environment_hash] = record
            case Session():
                sessions.append(record)
    newest = _hash(environment)
    here = [result for (_, where), result in results.items() if where == newest]
    order = {case.key: place for place, case in enumerate(contents.plan.cases)}
    return Run(
        plan=contents.plan,
        environment=environment,
        ceilings=ceilings.get(newest),
        results=tuple(sorted(here, key=lambda result: order.get(result.case.key, len(order)))),
        sessions=tuple(sessions),
        notices=contents.notices + _left_out(environment, environments, (where for _, where in results)),
    )


def _require_empty(directory: Path) -> None:
    if any(entry.name not in (LOCK_NAME, TEMPORARY) for entry in directory.iterdir()):
        raise ValueError(f"{directory} is not empty: pass --resume to go on with its run, or name another directory")


@contextmanager
def _locked(directory: Path) -> Iterator[FileLock]:
    """Lock the directory, at once or not at all, and keep it locked unless the body fails."""
    path = directory / LOCK_NAME
    holder = path.read_text(errors="replace").strip() if path.exists() else ""  # now: older FileLocks empty the file
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another run (pid {holder or 'unknown'}) is writing {directory}: wait for it or name another directory"
        ) from None
    try:
        path.write_text(f"{os.getpid()}\n")
        yield lock
    except BaseException:
        lock.release()
        raise


def _write_whole(file: FileIO, data: bytes) -> None:
    """Write in one call; on return the data is on the disk."""
    if file.write(data) != len(data):
        raise OSError(ENOSPC, os.strerror(ENOSPC))
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(environment: Environment | None) -> str:
    return environment.hash if environment else ""


def _left_out(here: Environment | None, known: Mapping[str, Environment], hashes: Iterable[str]) -> tuple[str, ...]:
    """One notice for each environment but this one that results were measured in; `hashes` has one item a result."""
    others = Counter(where for where in hashes if where != _hash(here))
    return tuple(_notice(number, known.get(where), here) for where, number in others.items())


def _notice(number: int, there: Environment | None, here: Environment | None) -> str:
    why = f": {differences(there, here)}" if there and here else ""
    return f"{number} result{'' if number == 1 else 's'} measured in another environment left out{why}"
