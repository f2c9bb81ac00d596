"""The search for the largest batch, against every threshold that a device may have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.run.max_batch import LIMIT, RESOLUTION, largest


def probed(threshold: int) -> tuple[int, list[int]]:
    """The result and the batch sizes asked for, where batches up to `threshold` fit."""
    probes: list[int] = []

    def fits(batch_size: int) -> bool:
        probes.append(batch_size)
        return batch_size <= threshold

    return largest(fits), probes


@given(st.integers(0, 2 * LIMIT))
def test_keeps_its_promise_for_any_threshold(threshold: int) -> None:
    found, probes = probed(threshold)
    true = min(threshold, LIMIT)
    assert found <= true
    assert true - found < max(1, true / RESOLUTION)
    assert found == 0 or found in probes, "the result itself was tried"
    assert len(probes) == len(set(probes)), "nothing is tried twice"
    assert max(probes) <= LIMIT
    # doubling up to the first failure, then bisection of an octave down to 1/32 of it
    assert len(probes) <= max(1, true).bit_length() + 1 + RESOLUTION.bit_length()


@pytest.mark.parametrize("threshold", range(65))
def test_is_exact_up_to_64(threshold: int) -> None:
    assert probed(threshold)[0] == threshold


def test_probes_of_an_example() -> None:
    assert probed(100) == (100, [1, 2, 4, 8, 16, 32, 64, 128, 96, 112, 104, 100, 102])
    assert probed(0) == (0, [1])
    assert probed(LIMIT) == (LIMIT, [2**power for power in range(17)])
