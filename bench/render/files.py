"""Files that are replaced whole."""

import os
from pathlib import Path

from bench.workers.errors import explained

_ANOTHER = "name a file that can be written"


def replace_file(path: Path, data: bytes) -> Path:
    """Write a file whole, so that a reader never sees half of one, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_file(path: Path, data: bytes) -> Path:
    """Write a file that a person named, whole, with the folders above it, and return it.

    A path that is no plain file, /dev/stdout or a pipe, is written to and not replaced.

    Raises:
        ValueError: it cannot be written.
    """
    with explained(f"cannot write {path}", _ANOTHER):
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return path
        return replace_file(path, data)


def require_writable(path: Path) -> None:
    """Refuse now what could not be written after some minutes of work; leaves no file behind that was not there.

    Raises:
        ValueError: it cannot be written.
    """
    with explained(f"cannot write {path}", _ANOTHER):
        there = path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
        if not there:
            path.unlink()
