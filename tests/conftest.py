"""What every test starts from."""

import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

# Tests that run side by side have a core each (`nox -s tests`): two pools of spinning threads on the same cores make
# small operators ten times slower than one thread is. Before torch is imported, which reads it once.
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import kernels.launch.runtime  # noqa: F401 - before anything imports Triton

# isort: split
from tests.support.bn_cases import many_runs, narrow_blocks, one_thread, without_dispatcher  # noqa: F401 - fixtures
from tests.support.fake_runner import fake, here  # noqa: F401 - fixtures
from tests.support.graphs_on_cpu import graphs_on_cpu  # noqa: F401 - a fixture
from tests.support.left_out import (  # noqa: F401 - hooks
    pytest_deselected,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from tests.support.made_up_workers import directory, workers  # noqa: F401 - fixtures
from tests.support.narrow_networks import narrow_depth, quick_choice  # noqa: F401 - fixtures
from tests.support.quick_interpreter import hurry
from tests.support.shallow_programs import flags_restored  # noqa: F401 - fixtures

hurry()

# What is printed depends on the terminal, and on the session of nox that calls: the tests have a terminal of their own.
os.environ["TERM"] = "xterm-256color"
for variable in ("NOX_CURRENT_SESSION", "COLUMNS", "NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(variable, None)

# Where the tests run in the background of a shell, SIGINT comes ignored, and every process started here would inherit
# that: the tests that send Ctrl-C need it as a terminal has it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What this machine was measured to reach is kept for the tests alone: the user's cache is neither read nor written.
_CACHE = TemporaryDirectory(prefix="resbench-tests-", ignore_cleanup_errors=True)
os.environ["RESBENCH_CACHE_DIR"] = _CACHE.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of whole commands, which take longest: else one core has them to itself at the end."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)
