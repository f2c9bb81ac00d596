"""Runs of the kernel bench made of invented figures, for the tests of its report and its command."""

from collections.abc import Mapping
from dataclasses import replace

from bench.kernels.types import Check, Contender, Direction, KernelRow, KernelRun, Op, Outcome, Request, Survey
from bench.types import Rounds, TensorError
from tests.support.synthetic_runs import CEILINGS, ENVIRONMENT

CACHE = 50 << 20
MODEL = "resnet50"
OPS = (
    Op(form="stem", shape=(256, 64, 112, 112), dtype="bf16", mode="train", layers={MODEL: 1}),
    Op(form="bn+relu", shape=(256, 64, 56, 56), dtype="bf16", mode="train", layers={MODEL: 6}),
    Op(form="bn", shape=(256, 64, 56, 56), dtype="bf16", mode="train"),
)
WORST = TensorError(tensor="dx", error=2e-3, eager_error=1.9e-3, tolerance=7.8e-3)
PASSED = Check(batch_size=256, tensors=4, worst=WORST)
FAILED = Check(batch_size=256, tensors=4, worst=replace(WORST, error=0.5))
ON_GPU = Survey(
    request=Request(device="cuda", models=(MODEL,), batch_size=256),
    device="cuda",
    environment=ENVIRONMENT,
    ceilings=CEILINGS,  # a copy of 1e11 bytes a second
    cache_bytes=CACHE,
    architecture="sm_90",
    seconds=0.3,
    why_untimed="",
    ops=OPS,
)
ON_CPU = replace(ON_GPU, device="cpu", why_untimed="it is interpreted here")
TIMES: dict[Contender, float] = {"fused": 4.0, "eager": 10.0, "compile": 5.0, "copy": 3.5}
MOVED = 300_000_000  # bytes: 3 ms of copying


def turns(ms: float) -> Rounds:
    """Ten rounds of two steps around a time, the same for every contender but for the time."""
    return tuple((ms * (1 + 0.001 * step), ms * (1 - 0.001 * step)) for step in range(10))


def row(direction: Direction, launch: str = "", times: Mapping[Contender, float] = TIMES) -> KernelRow:
    """A whole call, or a launch that moves half as much."""
    return KernelRow(
        direction=direction,
        launch=launch,
        tensor_bytes=102_760_448,
        bytes=MOVED // 2 if launch else MOVED,
        floor_bytes=None if launch else 290_000_000,
        rounds={name: turns(ms) for name, ms in times.items()},
    )


def outcome(op: Op) -> Outcome:
    """Everything timed: the statistics at 75 % of the copy rate and the apply pass at 100 %."""
    launches = [row("forward", "statistics", {"fused": 2.0, "copy": 1.6}), row("forward", "apply", {"fused": 1.5})]
    return Outcome(op=op, check=PASSED, rows=(row("forward"), *launches, row("backward")), seconds=3.0)


def untimed(op: Op) -> Outcome:
    """As on a machine without a GPU."""
    kept: dict[Contender, float] = {name: ms for name, ms in TIMES.items() if name != "fused"}
    why: dict[Contender, str] = {"fused": ON_CPU.why_untimed}
    rows = (row("forward", times=kept), row("forward", "statistics", {}), row("backward", times=kept))
    return Outcome(op=op, check=PASSED, rows=tuple(replace(one, untimed=why) for one in rows), seconds=3.0)


def kernel_run(*outcomes: Outcome, where: Survey = ON_GPU, interrupted: str = "") -> KernelRun:
    """A run with these outcomes of the first ops."""
    return KernelRun(
        survey=where,
        outcomes=outcomes,
        command="resbench kernels",
        wall_s=60.0,
        interrupted=interrupted,
    )
