"""Kernels that the audit has to find fault with, and one that it has not; see tests/bench/audit.

Each takes x, z and y [N, C, H, W] channels_last, as the kernels of the project do.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.audit.audit import Work, judged, subject
from kernels.launch.runtime import Call

SHAPE = (256, 64, 56, 56)


@triton.jit
def good(x_ptr, z_ptr, y_ptr, C, LAYOUT: tl.constexpr, BLOCK: tl.constexpr):
    """Adds."""
    at = tl.program_id(0).to(tl.int64) * C + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at) + tl.load(z_ptr + at))


@triton.jit
def spilling(x_ptr, z_ptr, y_ptr, C, LAYOUT: tl.constexpr, BLOCK: tl.constexpr):
    """Keeps every value of two large blocks until it knows their sums."""
    at = tl.program_id(0).to(tl.int64) * C + tl.arange(0, BLOCK)
    x, z = tl.load(x_ptr + at), tl.load(z_ptr + at)
    tl.store(y_ptr + at, x * tl.sum(z, axis=0) + z * tl.sum(x, axis=0))


@triton.jit
def narrow(x_ptr, z_ptr, y_ptr, C, LAYOUT: tl.constexpr, BLOCK: tl.constexpr):
    """Reads z backwards."""
    at = tl.program_id(0).to(tl.int64) * C + tl.arange(0, BLOCK)
    back = tl.program_id(0).to(tl.int64) * C + (BLOCK - 1 - tl.arange(0, BLOCK))
    tl.store(y_ptr + at, tl.load(x_ptr + at) + tl.load(z_ptr + back))


@triton.jit
def narrow_once(x_ptr, z_ptr, y_ptr, C, LAYOUT: tl.constexpr, BLOCK: tl.constexpr):
    """Reads z twice, once of both backwards."""
    at = tl.program_id(0).to(tl.int64) * C + tl.arange(0, BLOCK)
    back = tl.program_id(0).to(tl.int64) * C + (BLOCK - 1 - tl.arange(0, BLOCK))
    tl.store(y_ptr + at, tl.load(x_ptr + at) + tl.load(z_ptr + at) + tl.load(z_ptr + back))


@triton.jit
def forgetful(x_ptr, z_ptr, y_ptr, C, LAYOUT: tl.constexpr, BLOCK: tl.constexpr):
    """Does not read z."""
    at = tl.program_id(0).to(tl.int64) * C + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at))


@triton.jit
def greedy(x_ptr, z_ptr, y_ptr, C, LAYOUT: tl.constexpr, BLOCK: tl.constexpr):
    """Turns a large tile about in shared memory."""
    rows = tl.arange(0, BLOCK)[:, None] * C + tl.arange(0, BLOCK)[None, :]
    x, z = tl.load(x_ptr + rows), tl.load(z_ptr + rows)
    tl.store(y_ptr + rows, tl.trans(x) + z)


@triton.jit
def broken(x_ptr, z_ptr, y_ptr, C, LAYOUT: tl.constexpr, BLOCK: tl.constexpr):
    """Is no kernel."""
    tl.static_assert(BLOCK < 0, "a planted mistake")


PLANTED: dict[str, tuple[Any, int, int]] = {  # and BLOCK, num_warps
    "good": (good, 1024, 4),
    "spilling": (spilling, 8192, 1),
    "narrow": (narrow, 1024, 4),
    "narrow once": (narrow_once, 1024, 4),
    "forgetful": (forgetful, 1024, 4),
    "greedy": (greedy, 256, 32),
    "broken": (broken, 1024, 4),
}


def verdict(name: str) -> tuple[dict[str, object], list[str]]:
    """The figures and faults of a planted kernel on sm_80. In a process of `kernels.audit.audit.compilers`."""
    kernel, block, num_warps = PLANTED[name]
    x, z, y = (torch.empty(SHAPE, device="meta", memory_format=torch.channels_last) for _ in range(3))
    options = {"LAYOUT": "channels_last", "BLOCK": block, "num_warps": num_warps}
    call = Call(kernel=kernel, grid=(1,), arguments=(x, z, y, SHAPE[1]), options=options)
    return judged(subject(call, Work(form="planted", shapes=[SHAPE], arch="sm_80", dtype="fp32"), SHAPE))
