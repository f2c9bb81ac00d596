"""Files that are replaced whole."""

import os
from pathlib import Path


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
