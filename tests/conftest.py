"""What every test starts from."""

import signal

from graphs_on_cpu import graphs_on_cpu  # noqa: F401 - a fixture
from made_up_workers import directory, workers  # noqa: F401 - fixtures
from shallow_programs import flags_restored, shallow_depth  # noqa: F401 - fixtures

# Where the tests run in the background of a shell, SIGINT comes ignored, and every process started here would inherit
# that: the tests that send Ctrl-C need it as a terminal has it.
signal.signal(signal.SIGINT, signal.default_int_handler)
