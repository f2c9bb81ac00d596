"""`resbench kernels --search`: the fastest tile for each launch, out of a curated list. Worker side.

A pass over a tensor has one tile for all shapes, and is tried at three. A product has one for each shape, and where
cuBLAS can compute it, that is tried as well.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from time import monotonic
from typing import Any, Literal

import torch
from triton.errors import TritonError

from bench.kernels.operands import Launched, launches
from bench.kernels.ops import filled, ops
from bench.kernels.timing import cache_bytes, launch_calls, prepared, quiet_device, sets
from bench.kernels.types import Op, Request, TileKey, Trial
from bench.machine.ceilings import copy_rate
from bench.measure.timing import CudaClock
from bench.workers.child import announce
from bench.workers.errors import describe
from kernels.launch.passes import TILES, TILES_ON, Pass, Tile, tile_for
from kernels.launch.runtime import architecture
from kernels.products.cublas import CUBLAS
from kernels.products.tiles import Product, ProductTile, choice_for, chosen_instead

SAMPLES = 15  # replays of a graph of many launches
THREADS = 2048  # resident on a multiprocessor
STATISTICS_TOO = 2  # launches of a convolution by a library, which leaves them to a pass of their own
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
# (rows, columns, inner, num_warps, num_stages, programs): at most 128 fp32 sums a thread, half of its registers
PRODUCT_CANDIDATES: tuple[ProductTile, ...] = tuple(
    ProductTile(rows=rows, columns=columns, inner=inner, num_warps=num_warps, num_stages=num_stages, programs=programs)
    for rows, columns, inner, num_warps, num_stages, programs in (
        (64, 64, 32, 4, 4, 2), (64, 64, 64, 4, 3, 2), (64, 64, 64, 4, 3, 3), (64, 64, 64, 4, 4, 3),
        (128, 64, 32, 4, 4, 2), (128, 64, 64, 4, 3, 2), (128, 64, 64, 8, 3, 2), (128, 64, 64, 8, 4, 1),
        (64, 128, 64, 4, 3, 2), (64, 128, 64, 8, 3, 2),
        (128, 128, 32, 8, 4, 1), (128, 128, 64, 8, 3, 1), (128, 128, 64, 8, 4, 1),
    )
)  # fmt: skip

Candidate = Tile | ProductTile | Literal["library"]
Timer = Callable[[Launched], float]  # ms of one launch


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which of these is fastest?"""

    key: TileKey
    ops: tuple[Op, ...]  # in which it is tried
    candidates: tuple[Candidate, ...]  # the present one first
    instead: Callable[[Any], AbstractContextManager[None]]  # inside, launches are made with a candidate
    concerned: Callable[[Launched], bool]  # whether it is a launch of what is asked for


def search(request: Request, budget_s: float | None) -> list[Trial]:
    """The answers to all questions.

    Raises:
        ValueError: why there can be no search.
    """
    if request.device == "cpu" or not torch.cuda.is_available():
        raise ValueError("--search times launches on a GPU, and torch finds no CUDA device here: see `resbench doctor`")
    searched = ops(filled(request, "cuda"))
    with torch.inference_mode():
        copy_bytes_per_s = copy_rate("cuda")
    with quiet_device("cuda"):
        timer = partial(launch_ms, cache=cache_bytes("cuda"), copy_bytes_per_s=copy_bytes_per_s)
        return list(trials(questions(searched, architecture().name, None), timer, None, budget_s))


def questions(searched: Sequence[Op], machine: str, name: str | None) -> list[Question]:
    """A question for every pass and product of these ops. `name`: architecture of the launches, None for this GPU."""
    moved: dict[str, dict[Op, int]] = {}
    products: dict[Product, Op] = {}
    for op in searched:
        for launch in _launched(op, name):
            if isinstance(launch.call.chosen_for, Product):
                products.setdefault(launch.call.chosen_for, op)
            else:
                moved.setdefault(launch.kind, {})[op] = launch.bytes
    return [
        *(_pass_question(kind, moved[kind], machine) for kind in TILES if kind in moved),
        *(_product_question(product, op, name) for product, op in products.items()),
    ]


def _launched(op: Op, name: str | None) -> list[Launched]:
    return [launch for launched in launches(op, name).values() for launch in launched]


def _pass_question(kind: Pass, moved: dict[Op, int], machine: str) -> Question:
    """The question of a pass, in the ops whose launches of it move the most, the median and the least."""
    ordered = sorted(moved, key=lambda op: -moved[op])
    present = TILES_ON.get((machine, kind), TILES[kind])
    return Question(
        key=kind,
        ops=tuple(ordered[place] for place in sorted({0, len(ordered) // 2, len(ordered) - 1})),
        candidates=tuple(dict.fromkeys([present, *CANDIDATES])),
        instead=partial(tile_for, kind),
        concerned=lambda launch: launch.kind == kind,
    )


def _product_question(product: Product, op: Op, name: str | None) -> Question:
    candidates: dict[Candidate, None] = dict.fromkeys([choice_for(product), *PRODUCT_CANDIDATES])
    with chosen_instead(product, "library"):
        if any(launch.call.kernel is CUBLAS for launch in _launched(op, name)):
            candidates["library"] = None
    return Question(
        key=tuple(product),
        ops=(op,),
        candidates=tuple(candidates),
        instead=partial(chosen_instead, product),
        concerned=lambda launch: launch.call.chosen_for == product,
    )


def trials(asked: Sequence[Question], timer: Timer, name: str | None, budget_s: float | None) -> Iterator[Trial]:
    """Try candidate by candidate, until the budget ends. `name` as in `questions`."""
    began = monotonic()
    every = sum(len(question.ops) * len(question.candidates) for question in asked)
    done = 0
    for question in asked:
        for candidate in question.candidates:
            for op in question.ops:
                if budget_s is not None and monotonic() - began > budget_s:
                    return
                announce(f"{done}/{every} {question.key}")
                done += 1
                yield _trial(question, candidate, op, timer, name)


def _trial(question: Question, candidate: Candidate, op: Op, timer: Timer, name: str | None) -> Trial:
    with question.instead(candidate):
        launched = _launched(op, name)
    first = next(place for place, launch in enumerate(launched) if question.concerned(launch))
    number = STATISTICS_TOO if candidate == "library" and question.key[2] == "conv" else 1
    parts = launched[first : first + number]
    ms, reason = None, ""
    try:
        ms = sum(map(timer, parts))
    except (TritonError, RuntimeError, ValueError, AssertionError) as error:  # Triton refuses in all of these ways
        reason = describe(error)
    return Trial(
        key=question.key,
        op=op,
        tile={} if candidate == "library" else asdict(candidate),
        present=candidate == question.candidates[0],
        bytes=sum(part.bytes for part in parts),
        ms=ms,
        reason=reason,
    )


def launch_ms(launch: Launched, *, cache: int, copy_bytes_per_s: float) -> float:
    """Median over replays of a CUDA graph of launches on operands that come from memory."""
    calls = launch_calls(launch.call, sets(launch.bytes, cache), "cuda")
    timed = prepared(calls, "cuda", launch.bytes / copy_bytes_per_s)
    return median(CudaClock().sample(timed.step, SAMPLES)) / timed.calls
