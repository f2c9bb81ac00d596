"""The run of the kernel bench as a frame: one row a call (forward or backward) and one for each of its launches."""

from typing import Any, get_args

import pandas as pd

from bench.kernels.types import Check, Contender, Direction, KernelRow, KernelRun, Op, Outcome
from bench.render.records import Record
from bench.stats import Interval, median_interval, speedups
from bench.types import Status

CONTENDERS: tuple[Contender, ...] = get_args(Contender)
RATIOS: tuple[tuple[Contender, Contender], ...] = (("fused", "eager"), ("fused", "compile"), ("compile", "eager"))

# Columns of results.csv, as reports/README.md explains them; `<contender>` stands for each of CONTENDERS.
COLUMNS: dict[str, str] = {
    "form": "What is fused; a row of the table of kernels.",
    "n, c, h, w": "Shape of x.",
    "dtype": "Dtype of x and y: `fp32`, `bf16` or `fp16`; parameters and statistics are fp32.",
    "mode": "`train`: statistics of the batch; `eval`: running statistics.",
    "direction": "`forward` or `backward`.",
    "launch": "Kind of pass of a single launch, or the name of its kernel; empty for a whole call.",
    "<model>_layers": "How many of these one step of the network makes.",
    "status": "`valid`, `not-timed`, `parity-failed`, `crashed` or `not-run`.",
    "reason": "Why the status is not `valid`, or what has no time in a valid row.",
    "parity": "`pass` or `fail` of the whole op, forward and backward.",
    "parity_batch_size": "The batch it was checked at.",
    "parity_tensor": "The tensor that comes closest to its tolerance, or farthest past it.",
    "parity_error": "Its relative L2 error against fp64.",
    "parity_eager_error": "Eager's error of the same tensor at the same precision.",
    "parity_tolerance": "The largest error that passes.",
    "tensor_bytes": "Bytes of x.",
    "bytes": "Bytes read and written by the fused launches and by a bottleneck's 3x3 convolution; each tensor once.",
    "flops": "FLOPs of the products of matrices among these; a multiplication and an addition are two.",
    "floor_bytes": "The least for a tensor that no cache holds; whole calls of BatchNorms only.",
    "roofline_ms": "The larger of `bytes` over the rate of a large copy and `flops` over that of large products.",
    "<contender>_ms": "Median time of one call: `fused`, `eager`, `compile`, and `copy`, a plain copy of `bytes`.",
    "<contender>_ms_low, <contender>_ms_high": "95 % interval of the median.",
    "<contender>_samples": "Number of samples.",
    "<contender>_bytes_per_s": "`bytes` over the median time, whatever the contender itself moves.",
    "<contender>_copy_percent": "That over the rate of a large copy in the same run.",
    "<contender>_roofline_percent": "`roofline_ms` over the median time.",
    "<a>_over_<b>": "Time of a over time of b, the median over rounds of turns: `fused_over_eager`, "
    "`fused_over_compile`, `compile_over_eager`. Below 1 is faster.",
    "<a>_over_<b>_low, <a>_over_<b>_high": "95 % interval of that median.",
}


def frame(rows: list[Record]) -> pd.DataFrame:
    """Raw values; whole numbers stay whole beside missing ones."""
    return pd.DataFrame(rows).convert_dtypes()


def records(run: KernelRun) -> list[Record]:
    """Every row, in the order in which ops ran; those that were not run too."""
    not_run = [Outcome(op=op) for op in run.pending]
    return [
        {
            **_op(run, outcome.op),
            "direction": row.direction,
            "launch": row.launch,
            **_status(outcome, row, run.interrupted),
            **_parity(outcome.check),
            **_figures(run, outcome.op, row),
        }
        for outcome in (*run.outcomes, *not_run)
        for row in _rows(outcome)
    ]


def shape_name(record: Record) -> str:
    """E.g. `256x64x56x56`."""
    return "x".join(str(record[letter]) for letter in "nchw")


def whole(rows: list[Record]) -> list[Record]:
    """The rows of whole calls."""
    return [row for row in rows if not row["launch"]]


def _rows(outcome: Outcome) -> tuple[KernelRow, ...]:
    """The rows of an outcome; for an op that has none, one for each direction."""
    return outcome.rows or tuple(KernelRow(direction=name, tensor_bytes=0, bytes=0) for name in get_args(Direction))


def _op(run: KernelRun, op: Op) -> dict[str, Any]:
    layers = {f"{model}_layers": op.layers.get(model, 0) for model in run.survey.request.models}
    return {"form": op.form, **dict(zip("nchw", op.shape, strict=True)), "dtype": op.dtype, "mode": op.mode, **layers}


def _status(outcome: Outcome, row: KernelRow, interrupted: str) -> dict[str, str]:
    """The worst status that applies to a row, and the reason."""
    missing = "; ".join(f"{name}: {why}" for name, why in (row.failures | row.untimed).items())
    status, reason = Status.VALID.value, missing
    if outcome.failure:
        status, reason = Status.CRASHED.value, outcome.failure
    elif outcome.check is None:
        status, reason = "not-run", interrupted
    elif outcome.wrong:
        status, reason = Status.PARITY_FAILED.value, "it does not compute what the reference computes: no speed"
    elif row.failures:
        status = Status.CRASHED.value
    elif not row.rounds:
        status = Status.NOT_TIMED.value
    return {"status": status, "reason": reason}


def _parity(check: Check | None) -> dict[str, Any]:
    worst = check.worst if check else None
    return {
        "parity": None if check is None else "pass" if check.passed else "fail",
        "parity_batch_size": check.batch_size if check else None,
        "parity_tensor": worst.tensor if worst else None,
        "parity_error": worst.error if worst else None,
        "parity_eager_error": worst.eager_error if worst else None,
        "parity_tolerance": worst.tolerance if worst else None,
    }


def _roofline_ms(run: KernelRun, op: Op, row: KernelRow) -> float | None:
    """The least time at the rates of this run; None where nothing is moved, or the rate of its products is unknown."""
    ceilings = run.survey.ceilings
    rate = ceilings.matmul_flops_per_s.get(op.dtype)
    if not row.bytes or (row.flops and rate is None):
        return None
    return 1e3 * max(row.bytes / ceilings.copy_bytes_per_s, row.flops / rate if rate else 0.0)


def _figures(run: KernelRun, op: Op, row: KernelRow) -> dict[str, Any]:
    bound = _roofline_ms(run, op, row)
    figures: dict[str, Any] = {
        "tensor_bytes": row.tensor_bytes or None,
        "bytes": row.bytes or None,
        "flops": row.flops or None,
        "floor_bytes": row.floor_bytes,
        "roofline_ms": bound,
    }
    for name in CONTENDERS:
        figures |= _times(row, name, run.survey.ceilings.copy_bytes_per_s, bound)
    for over, under in RATIOS:
        figures |= _ends(f"{over}_over_{under}", _ratio(row, over, under))
    return figures


def _times(row: KernelRow, name: Contender, copy_bytes_per_s: float, bound: float | None) -> dict[str, Any]:
    samples = row.samples_ms(name)
    interval = median_interval(samples) if samples else None
    rate = row.bytes / interval.median * 1e3 if interval else None
    return {
        **_ends(f"{name}_ms", interval),
        f"{name}_samples": len(samples) or None,
        f"{name}_bytes_per_s": rate,
        f"{name}_copy_percent": None if rate is None else 100 * rate / copy_bytes_per_s,
        f"{name}_roofline_percent": None if interval is None or bound is None else 100 * bound / interval.median,
    }


def _ratio(row: KernelRow, over: Contender, under: Contender) -> Interval | None:
    if not (row.rounds.get(over) and row.rounds.get(under)):
        return None
    return median_interval(speedups(row.rounds[over], row.rounds[under]))


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    return {
        name: interval.median if interval else None,
        f"{name}_low": interval.low if interval else None,
        f"{name}_high": interval.high if interval else None,
    }


def columns_markdown() -> str:
    """COLUMNS as Markdown."""
    lines = [f"| {', '.join(f'`{word}`' for word in name.split(', '))} | {text} |" for name, text in COLUMNS.items()]
    return "\n".join(["| column | meaning |", "|:--|:--|", *lines])
