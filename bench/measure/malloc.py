"""The options of glibc's malloc that decide what happens to freed memory while a program is timed. Worker side."""

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bench.types import Device

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
HAND_BACK = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 2**17, M_MMAP_THRESHOLD: 2**17}  # where glibc starts; set, they stay


@contextmanager
def freed_is_kept(device: Device) -> Iterator[None]:
    """A context for a program that is timed: on CPU it keeps freed memory, as CUDA's caching allocator does.

    By default glibc hands large blocks back to the kernel, which zeroes them and faults them in again at the next step,
    or it does not, by where small blocks happen to lie: a program is then in one of two states, and one is much slower.
    Memory that is kept is split and scattered, and steps take more of it: `measure` ends this, as does the exit.
    """
    if device == "cpu":
        set_malloc(KEEP)
    try:
        yield
    finally:
        if device == "cpu":
            set_malloc(HAND_BACK)


def set_malloc(options: Mapping[int, int]) -> None:
    """Set options by mallopt(3)."""
    for option, value in options.items():
        glibc("mallopt", option, value)


def glibc(function: str, *arguments: int) -> None:
    """Call what only glibc's allocator has; with another C library do nothing."""
    entry = getattr(ctypes.CDLL(None), function, None)
    if entry is not None:
        entry(*arguments)
