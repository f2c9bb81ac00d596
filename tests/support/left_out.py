"""How many tests a run has left to `nox -s tests_exhaustive`, said at its end; with xdist the workers know it."""

from collections.abc import Sequence

import pytest

LEFT_OUT = pytest.StashKey[int]()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    exhaustive = sum(item.get_closest_marker("exhaustive") is not None for item in items)
    if exhaustive:
        _keep(items[0].config, exhaustive)


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """xdist's: a worker has ended. All of them collect the same tests."""
    output = getattr(node, "workeroutput", {})
    _keep(getattr(node, "config"), output.get("left_out", 0))  # noqa: B009 - xdist has no types


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{left} exhaustive tests were left out: nox -s tests_exhaustive runs them")


def _keep(config: pytest.Config, left: int) -> None:
    config.stash[LEFT_OUT] = max(left, config.stash.get(LEFT_OUT, 0))
