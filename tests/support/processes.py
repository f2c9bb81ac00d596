"""Other processes as the tests see them: whether they live, and who their children are."""

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 500.0  # far more than anything takes, on slow and busy machines too: a test that waits this long failed


def wait_until(true: Callable[[], object], what: str) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it does not, with `what` did not happen.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE_S:g} s")
        time.sleep(0.02)


def lives(pid: int) -> bool:
    """Whether the process runs; one that is dead and waits for its parent does not."""
    return _stat(pid)[0] not in ("", "Z", "X")


def children(pid: int) -> list[int]:
    """The living children of a process."""
    everybody = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [other for other in everybody if _stat(other)[1] == str(pid) and lives(other)]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def workers(pid: int) -> list[int]:
    """The workers of a runner: children of its fork server."""
    servers = [child for child in children(pid) if "forkserver" in command_line(child)]
    return [worker for server in servers for worker in children(server)]


def _stat(pid: int) -> tuple[str, str]:
    """State and parent of a process; empty where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[1]
