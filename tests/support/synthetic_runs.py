"""Runs made of invented figures, for the tests of metrics and reports."""

from dataclasses import replace
from itertools import product
from pathlib import Path

from bench.record.metrics import frame
from bench.report.order import records
from bench.report.write import write
from bench.types import (
    Case,
    Ceilings,
    Cost,
    Environment,
    Measurement,
    Memory,
    Mode,
    ParityResult,
    Plan,
    Precision,
    Result,
    Rounds,
    Run,
    Session,
    Settings,
    Status,
    Telemetry,
    TensorError,
)

CASE = Case(model="resnet18", mode="infer", precision="fp32", batch_size=8, image_size=224, path="eager", device="cuda")
CEILINGS = Ceilings(copy_bytes_per_s=1e11, matmul_flops_per_s={"fp32": 1e12, "bf16": 4e12})
ENVIRONMENT = Environment(
    facts={"device": "Example 9000", "torch": "2.15.0", "cpu": "Example CPU", "kernel": "Linux 6"}
)
ERROR = TensorError(tensor="grad:conv1.weight@1", error=3e-3, eager_error=2e-3, tolerance=4e-3)
PASSED = ParityResult(batch_size=8, tensors=62, worst=ERROR)
FAILED = ParityResult(
    batch_size=8,
    tensors=62,
    worst=replace(ERROR, error=float("inf")),
    failures=(replace(ERROR, error=float("inf")),),
    failed=1,
    first_layer="layer1.0.conv1",
)
MEMORY = Memory(
    peak_allocated_bytes=3 << 30,
    peak_reserved_bytes=4 << 30,
    process_bytes=5 << 30,
    parameter_bytes=46_779_648,
    activation_bytes=1 << 30,
    workspace_bytes=1 << 28,
)
TELEMETRY = Telemetry(
    sm_clock_mhz=1980.0,
    memory_clock_mhz=2619.0,
    power_w=650.0,
    temperature_c=61.0,
    energy_j=1300.0,
    energy_steps=1000,
)
PHASES = {"start-up": 0.5, "build": 1.0, "first call": 2.0, "parity": 3.0, "warm-up": 4.0, "sampling": 6.0}


def samples(step_ms: float, number: int = 200) -> tuple[float, ...]:
    """Times around `step_ms`, their exact median, in an order that is not sorted."""
    steps = [step_ms * (1 + 0.02 * ((37 * i) % number - (number - 1) / 2) / number) for i in range(number)]
    return tuple(steps)


def measurement(step_ms: float, first_call_s: float = 1.0, **changes: object) -> Measurement:
    plain = Measurement(
        samples_ms=samples(step_ms),
        wall_ms=step_ms * 1.1,
        first_call_s=first_call_s,
        steady=True,
        converged=True,
        memory=MEMORY,
        telemetry=TELEMETRY,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def result(case: Case = CASE, step_ms: float | None = 4.0, **changes: object) -> Result:
    """A valid, timed and checked result; with step_ms=None not timed."""
    plain = Result(
        case=case,
        status=Status.VALID,
        measurement=None if step_ms is None else measurement(step_ms),
        parity=replace(PASSED, batch_size=case.batch_size),
        cost=Cost(flops=10**10, bytes=10**8),
        phases_s=PHASES,
        finished_at="2030-01-01T00:00:00+00:00",
        environment_hash=ENVIRONMENT.hash,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def failed(case: Case, status: Status, reason: str, **changes: object) -> Result:
    return result(case, None, status=status, reason=reason, **{"parity": None, "cost": None, **changes})


def taken_turns(timed: Result, results: tuple[Result, ...]) -> Result:
    """The result with the turns that its worker takes with its baselines, where they are among the results."""
    if timed.measurement is None or timed.measurement.turns:
        return timed
    cells = [replace(timed.case, path="eager", precision=precision) for precision in {timed.case.precision, "fp32"}]
    turns: dict[str, Rounds] = {
        one.case.key: tuple((ms,) for ms in one.measurement.samples_ms)
        for one in results
        if one.measurement and one.case != timed.case and one.case in cells
    }
    if turns:
        turns[timed.case.key] = tuple((ms,) for ms in reversed(timed.measurement.samples_ms))
    return replace(timed, measurement=replace(timed.measurement, turns=turns))


def run(*results: Result, pending: tuple[Case, ...] = (), **changes: object) -> Run:
    results = tuple(taken_turns(one, results) for one in results)
    plain = Run(
        plan=Plan(
            name="example",
            cases=(*(one.case for one in results), *pending),
            settings=Settings(),
            command="resbench run --preset example --out example",
        ),
        environment=ENVIRONMENT,
        ceilings=CEILINGS,
        results=results,
        sessions=(Session(started_at="2030-01-01T00:00:00+00:00", wall_s=33.0),),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def every_status() -> Run:
    """One row of each status; the first of the run is one that failed, and the first rows hold no measurement."""
    reasons = {
        Status.UNSUPPORTED: "needs CUDA: none here",
        Status.NOT_TIMED: "interpreted here",
        Status.CRASHED: "signal SIGSEGV | <frame>\nsecond line",
        Status.OOM: "tried to allocate 2 GiB",
        Status.TIMEOUT: "no result after 600 s",
        Status.PARITY_FAILED: "grad:conv1.weight@1 differs",
        Status.UNSTABLE: "interval of 1.2 % after 10 s",
        Status.THROTTLED: "software power cap",
        Status.RECOMPILED: "2 recompilations",
        Status.SHARED_GPU: "1 other process",
    }
    untimed = (Status.UNSUPPORTED, Status.NOT_TIMED, Status.CRASHED, Status.OOM, Status.TIMEOUT)
    rows = []
    for place, (status, reason) in enumerate(reasons.items()):
        case = replace(CASE, path="compile", batch_size=2**place)
        timed = result(case, 2.0, status=status, reason=reason)
        row = failed(case, status, reason) if status in untimed else timed
        rows.append(replace(row, parity=FAILED) if status is Status.PARITY_FAILED else row)
    return run(*rows, result(CASE))


SPEEDS = {
    "eager": 1.0,
    "channels_last": 1.35,
    "compile": 1.9,
    "compile-reduce-overhead": 2.1,
    "compile-max-autotune": 2.25,
    "cuda-graph": 1.5,
    "folded": 1.8,
}
GAINS = {"fp32": 1.0, "tf32": 1.8, "bf16": 3.1, "fp16": 3.0}


WORK = {"resnet18": 1.0, "resnet50": 2.3, "infer": 1.0, "train": 3.1}
FIRST_CALLS = {"compile": 21.0, "compile-reduce-overhead": 24.0, "compile-max-autotune": 190.0}
MODES: tuple[Mode, ...] = ("infer", "train")


def sweep(
    *,
    models: tuple[str, ...] = ("resnet18", "resnet50"),
    precisions: tuple[Precision, ...] = ("fp32", "bf16"),
    batches: tuple[int, ...] = (1, 8, 64, 256),
    paths: tuple[str, ...] = tuple(SPEEDS),
) -> Run:
    """A whole grid with plausible shapes: throughput saturates with the batch, memory grows with it."""
    cells = product(models, MODES, precisions, batches, paths)
    grid = [
        replace(CASE, model=model, mode=mode, precision=precision, batch_size=batch, path=path)
        for model, mode, precision, batch, path in cells
    ]
    return run(*map(plausible, grid))


def plausible(case: Case) -> Result:
    if case.path == "folded" and case.mode == "train":
        return failed(case, Status.UNSUPPORTED, "folded runs inference only")
    work, batch = WORK[case.model] * WORK[case.mode], case.batch_size
    step_ms = work * (0.9 + 0.06 * batch) / (SPEEDS[case.path] * GAINS[case.precision])
    saved = (0.5 if case.precision == "bf16" else 1.0, 0.8 if "max" in case.path else 1.0)
    size = int(work * (2e8 + batch * 2.2e7 * saved[0]) * saved[1])
    memory = replace(MEMORY, peak_allocated_bytes=size, peak_reserved_bytes=size + size // 5)
    return result(
        case,
        measurement=measurement(step_ms, FIRST_CALLS.get(case.path, 1.2), memory=memory),
        choices={"layer1.0.conv1": "fused", "layer1.0.conv2": "separate"} if case.path == "folded" else {},
        cost=Cost(flops=4 * 10**9 * batch, bytes=10**8),
    )


def written(directory: Path, of: Run) -> list[Path]:
    """The report files of a run, written to a directory as a command does."""
    table = frame(of)
    return write(directory, of, table, records(table))
