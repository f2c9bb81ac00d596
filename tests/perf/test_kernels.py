"""How long the fused ops take beside eager and torch.compile, for pytest-benchmark: `nox -s perf`.

Kept from run to run in .benchmarks/, so that `nox -s perf -- --benchmark-compare` compares with the last one. A step is
one call on the CPU, and on a GPU a CUDA graph with one call for each set of operands; `calls` tells how many.
`resbench kernels` measures more, by turns, and reports.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.kernels.operands import Function, operands_of
from bench.kernels.timing import (
    Timed,
    backward_calls,
    cache_bytes,
    compiled,
    forward_calls,
    prepared,
    quiet_device,
    rotated,
    sets,
)
from bench.kernels.types import Direction, Op, Shape
from bench.machine.requirements import INTERPRETED_REASON
from bench.measure.timing import CLOCKS
from bench.types import Device
from kernels.kernel import Kernel
from kernels.table import KERNELS

DEVICE: Device = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES: dict[Device, tuple[Shape, ...]] = {
    "cuda": ((256, 64, 112, 112), (256, 256, 56, 56), (256, 512, 7, 7)),
    "cpu": ((8, 64, 56, 56), (8, 512, 7, 7)),
}
CONTENDERS: dict[str, Callable[[Kernel], Function]] = {
    "fused": lambda row: row.run,
    "eager": lambda row: row.oracle,
    "compile": lambda row: compiled(row.oracle),
}
ONE_ROUND_S = 1.0  # of a call, for `prepared`: no set is captured twice, so that every run has the same graph


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_device(DEVICE):
        yield


def timed(op: Op, row: Kernel, direction: Direction, contender: str) -> Timed:
    """What is timed, after its first run."""
    operands = operands_of(op, DEVICE)
    copies = rotated(operands, sets(operands.x.nbytes, cache_bytes(DEVICE)))
    make = forward_calls if direction == "forward" else backward_calls
    return prepared(make(CONTENDERS[contender](row), copies, training=True), DEVICE, ONE_ROUND_S)


@pytest.mark.benchmark(max_time=0.5, min_rounds=5)
@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("shape", SHAPES[DEVICE], ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("row", KERNELS, ids=lambda row: row.name)
def test_call(benchmark: BenchmarkFixture, row: Kernel, shape: Shape, direction: Direction, contender: str) -> None:
    if contender == "fused" and DEVICE == "cpu":
        pytest.skip(f"not timed: {INTERPRETED_REASON}")
    op = Op(form=row.name, shape=shape, dtype="bf16", mode="train")
    made, clock = timed(op, row, direction, contender), CLOCKS[DEVICE]()

    def step() -> None:
        made.step()
        clock.synchronize()

    benchmark.group = f"{op.key} {direction}"
    benchmark.extra_info["calls"] = made.calls
    benchmark(step)
