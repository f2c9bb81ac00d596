"""The message for a person, and the file to send, when a command fails unexpectedly. Standard library only."""

import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from bench.workers.errors import OURS, ROOT, describe

_VERSIONS = (
    "resbench", "torch", "torchvision", "triton", "numpy", "pandas", "matplotlib", "click", "rich", "msgspec",
    "filelock",
)  # fmt: skip


def tell(error: BaseException, directory: Path | None = None) -> str:
    """Write a file about it, in the directory of the run if there is one, and return a paragraph that says so."""
    report, what = _report(error), f"resbench itself failed: {describe(error)}{_place(error)}."
    for folder in _folders(directory):
        file = folder / f"resbench-failure-{datetime.now(UTC):%Y%m%d-%H%M%S}.txt"
        with suppress(OSError):
            file.write_text(report, encoding="utf-8", errors="backslashreplace")
            return f"{what} What was measured before is safe. Please send {file} to the maintainers."
    return f"{what} What was measured before is safe. Please send what follows to the maintainers.\n\n{report}"


def _folders(directory: Path | None) -> Iterator[Path]:
    """The folders where the file may go, the best first."""
    if directory is not None and directory.is_dir():
        yield directory
    with suppress(OSError):
        yield Path(tempfile.gettempdir())
    yield Path()


def _report(error: BaseException) -> str:
    versions = {"python": f"{platform.python_version()} on {platform.platform()}"}
    versions |= {name: _version(name) for name in _VERSIONS}
    return "\n".join([
        f"time: {datetime.now(UTC).isoformat(timespec='seconds')}",
        f"command: {shlex.join(sys.argv)}",
        *(f"{name}: {version}" for name, version in versions.items()),
        "",
        *traceback.format_exception(error),
    ])  # fmt: skip


def _version(name: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return "not installed"


def _place(error: BaseException) -> str:
    """The last line of our code that the error went through."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(OURS)]
    return f" ({Path(ours[-1].filename).relative_to(ROOT)}, line {ours[-1].lineno})" if ours else ""
