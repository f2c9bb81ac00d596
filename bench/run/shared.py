"""The files that cases of a sitting share, made when the first of them needs one. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.run.budget import Budget
from bench.run.phases import Phases
from bench.run.remote import worker
from bench.types import Case, Ceilings, Reference, Settings
from bench.workers.errors import WorkerTimeoutError
from bench.workers.parent import Terms
from resnet.paths import PATHS_BY_NAME

_KEPT_REFERENCES = 4  # cells whose fp64 trajectories stay on disk; a large one takes gigabytes


class Shared:
    """References by cell, and what the compiler knows of this machine, as files in a folder of the sitting."""

    def __init__(self, settings: Settings, rates: Ceilings, folder: Path, budget: Budget) -> None:
        self._settings, self._rates, self._folder, self._budget = settings, rates, folder, budget
        self._tools: Path | None = None
        self._references: dict[tuple[object, ...], Reference] = {}
        self._timed_out: dict[tuple[object, ...], WorkerTimeoutError] = {}

    def reference(self, case: Case, log: Path, phases: Phases) -> Reference:
        """The reference that the paths of a cell are checked against."""
        cell = (case.model, case.mode, case.batch_size, case.image_size, case.precision)
        if cell not in self._references:
            with self._not_again(cell):
                self._forget_old_references()
                phases("reference")
                self._references[cell] = self._terms(log).call(
                    worker.prepare_reference, case, self._settings, self._rates, self._folder
                )
        return self._references[cell]

    def tools(self, case: Case, log: Path, phases: Phases) -> Path | None:
        """The folder of what the compiler learns once per machine, for a case that compiles."""
        if PATHS_BY_NAME[case.path].compile_mode is None:
            return None
        if self._tools is None:
            with self._not_again(("compiler",)):
                phases("compiler")
                tools = self._folder / "compiler"
                self._terms(log).call(worker.prepare_compiler, case.device, tools)
                self._tools = tools
        return self._tools

    def _terms(self, log: Path) -> Terms:
        return Terms(timeout_s=self._budget.limit_s(self._settings.timeout_s), log=log)

    @contextmanager
    def _not_again(self, what: tuple[object, ...]) -> Iterator[None]:
        """A context to make what cases share. If that timed out it is not tried again: each try would take as long."""
        if what in self._timed_out:
            raise self._timed_out[what]
        try:
            yield
        except WorkerTimeoutError as error:
            self._timed_out[what] = error
            raise

    def _forget_old_references(self) -> None:
        """Make room on the disk: a trajectory that is asked for again is made again."""
        while len(self._references) >= _KEPT_REFERENCES:
            oldest = next(iter(self._references))
            files = self._references.pop(oldest).files
            kept = {file for reference in self._references.values() for file in reference.files}
            for file in set(files) - kept:
                Path(file).unlink(missing_ok=True)
