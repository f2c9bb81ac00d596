"""Searches the largest batch that fits. Pure: whether a batch fits is the caller's to find out."""

from collections.abc import Callable

LIMIT = 2**16  # images; nothing that fits this many is short of memory
RESOLUTION = 32  # the result is less than 1/32 below the true largest batch, and exact up to 64


def largest(fits: Callable[[int], bool]) -> int:
    """The largest batch size from 1 to `LIMIT` that fits, 0 if not even 1 does: doubling, then bisection.

    `fits` is taken to be monotone: what does not fit does not fit in any larger batch.
    """
    low, high = 0, 1
    while high <= LIMIT and fits(high):
        low, high = high, high * 2
    while high - low > max(1, low // RESOLUTION) and low < LIMIT:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
