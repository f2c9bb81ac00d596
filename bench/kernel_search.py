"""`resbench kernels --search`: which tile is fastest for each kind of pass, by trying a curated list. Worker side."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from time import monotonic

import torch
from triton.errors import TritonError

from bench.isolation import announce, describe
from bench.kernel_ops import Launched, filled, launches, ops
from bench.kernel_timing import cache_bytes, launch_calls, prepared, quiet_device, sets
from bench.kernel_types import Op, Request, Trial
from bench.limits import copy_rate
from bench.timing import CudaClock
from kernels.launch import TILES, TILES_ON, Pass, Tile, tile_for
from kernels.runtime import architecture

SAMPLES = 15  # replays of a graph of many launches
THREADS = 2048  # resident on a multiprocessor
# (kibibytes, num_warps): 32 to 128 bytes a thread, two to eight 128-bit accesses that are on their way at once
SIZES = (
    (4, 4), (8, 4), (8, 8), (16, 4), (16, 8), (16, 16), (32, 8), (32, 16), (32, 32), (64, 16), (64, 32),
)  # fmt: skip
CANDIDATES: tuple[Tile, ...] = tuple(
    Tile(kibibytes=kibibytes, num_warps=num_warps, programs=programs)
    for kibibytes, num_warps in SIZES
    for programs in (1, 2, 4)
    if 32 * num_warps * programs <= THREADS
)

Timer = Callable[[Launched], float]  # ms of one launch


def search(request: Request, budget_s: float | None) -> list[Trial] | str:
    """Every candidate for every kind of pass; or, as text, why there can be no search."""
    if request.device == "cpu" or not torch.cuda.is_available():
        return "--search times launches on a GPU, and torch finds no CUDA device here: see `resbench doctor`"
    try:
        wanted = ops(filled(request, "cuda"))
    except ValueError as error:
        return str(error)
    with torch.inference_mode():
        copied = copy_rate("cuda")
    with quiet_device("cuda"):
        timer = partial(launch_ms, cache=cache_bytes("cuda"), copy_bytes_per_s=copied)
        return list(trials(representatives(wanted, None), timer, architecture().name, None, budget_s))


def representatives(wanted: Sequence[Op], name: str | None) -> dict[Pass, list[Op]]:
    """For each kind of pass the ops whose launches of it move most, least and the middle. Products are none."""
    moved: dict[str, dict[Op, int]] = {}
    for op in wanted:
        for launch in (launch for launched in launches(op, name).values() for launch in launched):
            moved.setdefault(launch.kind, {})[op] = launch.bytes
    return {kind: _spread(sorted(moved[kind], key=lambda op: -moved[kind][op])) for kind in TILES if kind in moved}


def _spread(ordered: list[Op]) -> list[Op]:
    places = {0, len(ordered) // 2, len(ordered) - 1}
    return [ordered[place] for place in sorted(places)]


def trials(
    chosen: dict[Pass, list[Op]], timer: Timer, machine: str, name: str | None, budget_s: float | None
) -> Iterator[Trial]:
    """The present tile first, then the candidates, until the budget ends. `name`: whose launches, None for this GPU."""
    began = monotonic()
    tiles = {kind: list(dict.fromkeys([_present(kind, machine), *CANDIDATES])) for kind in chosen}
    every = sum(len(chosen[kind]) * len(of) for kind, of in tiles.items())
    done = 0
    for kind, of in tiles.items():
        for tile in of:
            for op in chosen[kind]:
                if budget_s is not None and monotonic() - began > budget_s:
                    return
                announce(f"{done}/{every} {kind}")
                done += 1
                yield _trial(kind, op, tile, timer, machine, name)


def _trial(kind: Pass, op: Op, tile: Tile, timer: Timer, machine: str, name: str | None) -> Trial:
    with tile_for(kind, tile):
        launch = next(launch for launched in launches(op, name).values() for launch in launched if launch.kind == kind)
    ms, reason = None, ""
    try:
        ms = timer(launch)
    except (TritonError, RuntimeError, ValueError, AssertionError) as error:  # Triton refuses in all of these ways
        reason = describe(error)
    return Trial(
        kind=kind,
        op=op,
        tile=(tile.kibibytes, tile.num_warps, tile.programs),
        present=tile == _present(kind, machine),
        bytes=launch.bytes,
        ms=ms,
        reason=reason,
    )


def _present(kind: Pass, machine: str) -> Tile:
    return TILES_ON.get((machine, kind), TILES[kind])


def launch_ms(launch: Launched, *, cache: int, copy_bytes_per_s: float) -> float:
    """Median over replays of a CUDA graph of launches on operands that come from memory."""
    calls = launch_calls(launch.call, sets(launch.bytes, cache), "cuda")
    timed = prepared(calls, "cuda", launch.bytes / copy_bytes_per_s)
    return median(CudaClock().sample(timed.step, SAMPLES)) / timed.calls
