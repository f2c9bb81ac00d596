"""Values of a parameter that `nox -s tests_exhaustive` tries: the default suite sees the same faults by the others."""

import pytest


def exhaustive(*values: object) -> list[object]:
    """The values as parameters that carry the mark; for `pytest.mark.parametrize`."""
    return [pytest.param(value, marks=pytest.mark.exhaustive) for value in values]
