"""The code that a run was made with: the commit where it says all, else also a hash of the source files.

Later commits that touch no source (documents, tests, committed reports) measure the same, and a run can be resumed over
them. Standard library only.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

UNKNOWN = "unknown"
# What is measured and what measures, below the folder that holds the packages; git reads them as pathspecs.
SOURCES = ("bench/**/*.py", "kernels/**/*.py", "kernels/**/*.cpp", "kernels/**/*.hpp", "resnet/**/*.py")

_ROOT = Path(__file__).resolve().parents[2]
_HASH_DIGITS = 12
_DIGEST_DIGITS = 8  # of one file, where only its own versions are told apart
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """The code that is here.

    `name` is `<commit>` where every source file is as committed, `<commit>-dirty-<hash>` where one is not,
    `source-<hash>` where git does not know them (an export, a wheel, a checkout of another user, no git), and `unknown`
    where there are no sources. The same contents have the same hash, wherever and whenever they were written.
    """

    name: str
    digests: dict[str, str]  # by file, relative to the root
    changed: tuple[str, ...] = ()  # files that differ from the commit


def revision(root: Path = _ROOT) -> Revision:
    """The revision of the packages below `root`."""
    whole = _digests(root)
    digests = {name: digest[:_DIGEST_DIGITS] for name, digest in whole.items()}
    if not whole:
        return Revision(name=UNKNOWN, digests=digests)
    commit = _commit(root)
    changed = _changed(root) if commit else None
    if changed is None:
        return Revision(name=f"source-{_hash(whole)}", digests=digests)
    name = f"{commit}-dirty-{_hash(whole)}" if changed else commit
    return Revision(name=name, digests=digests, changed=changed)


def _digests(root: Path) -> dict[str, str]:
    """SHA-256 of every source file, in the order of their names."""
    files = {file.relative_to(root).as_posix(): file for glob in SOURCES for file in root.glob(glob) if file.is_file()}
    return {name: _digest(files[name]) for name in sorted(files)}


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:  # Python could not have read it either
        return "unreadable"


def _hash(digests: Mapping[str, str]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:_HASH_DIGITS]


def _commit(root: Path) -> str:
    """The last commit that touched a source; empty where the root is no checkout of its own that git may read."""
    if _git(root, "rev-parse", "--show-toplevel") != f"{root}\n":
        return ""
    return (_git(root, "log", "-1", "--format=%H", "--", *_pathspecs()) or "").strip()


def _changed(root: Path) -> tuple[str, ...] | None:
    """Files that differ from the commit, new ones too; None where git does not tell."""
    status = _git(root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", *_pathspecs())
    return None if status is None else tuple(sorted(entry[3:] for entry in status.split("\0") if entry))


def _pathspecs() -> tuple[str, ...]:
    return tuple(f":(glob){source}" for source in SOURCES)


def _git(root: Path, *arguments: str) -> str | None:
    """The output of git; None where it fails or is not there."""
    git = shutil.which("git")
    if git is None:
        return None
    command = (git, "-C", str(root), *arguments)
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(  # noqa: S603
            command, capture_output=True, check=True, timeout=_TIMEOUT_S, encoding="utf-8", errors="surrogateescape"
        ).stdout
    return None
