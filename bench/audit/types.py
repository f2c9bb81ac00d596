"""The noun of the audit. Imports no torch."""

from typing import Any

Row = dict[str, Any]  # a compilation: figures by name, and `faults` in words
