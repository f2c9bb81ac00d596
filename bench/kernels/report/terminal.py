"""The short table that `resbench kernels` ends with."""

from collections.abc import Callable
from typing import Any

from bench.kernels.report.roofline import SERIES
from bench.kernels.report.rows import CONTENDERS, shape_name, whole
from bench.kernels.report.totals import RATIO_TARGETS, Total, totals
from bench.kernels.types import KernelRun
from bench.render.records import Record
from bench.render.text import percent, ratio, ratio_spread, significant
from bench.terminal import tables
from bench.terminal.sheet import Axis, Column, Form, Sheet

AXES_OF_SUMS = (Axis("network", "network"), Axis("dtype", "dtype"), Axis("work", "work"))
AXES_OF_CALLS = (Axis("dtype", "dtype"), Axis("form", "form"), Axis("x", "x", "x of {}"))
LATER = ("fused of copy rate", "copy ms")  # where the width does not suffice these columns go, the last first
ELSEWHERE = "report.md has them"

Ratio = Callable[[float, float, float], str]


def summary(run: KernelRun, rows: list[Record]) -> Sheet:
    """All work of each network; where no network was asked for, every call."""
    sums = totals(rows, run.survey.request.models)
    if sums:
        shown = [_sum(run, total) for total in sums]
        return Sheet(rows=shown, columns=_SUMS, axes=AXES_OF_SUMS, title="all work of one step", elsewhere=ELSEWHERE)
    calls = [_call(row) for row in whole(rows)]
    return tables.table(calls, axes=AXES_OF_CALLS, later=LATER, elsewhere=ELSEWHERE)


def _sum(run: KernelRun, total: Total) -> Record:
    untimed = "not timed" if total.untimed(run.survey.why_untimed) else ""
    return {
        "network": total.model,
        "dtype": total.dtype,
        "work": total.work,
        "by": SERIES[total.contender].label,
        "forward ms": untimed or significant(total.forward_ms),
        "backward ms": untimed or significant(total.backward_ms),
        "both ms": untimed or significant(total.ms),
        "layers timed": f"{total.timed} of {total.layers}",
        "over": total.over,
    }


def _over(name: str, show: Ratio) -> Callable[[Any], str]:
    def shown(row: Record) -> str:
        interval = row["over"].get(name)
        return "" if interval is None else show(interval.median, interval.low, interval.high)

    return shown


def _plain(name: str, rank: int = 0) -> tuple[Form]:
    return (Form(rank, lambda row: str(row[name])),)


def _median(median: float, low: float, high: float) -> str:
    del low, high
    return ratio(median)


_SUMS = (
    Column("by", _plain("by"), "left", key=True),
    Column("forward ms", _plain("forward ms", rank=2)),
    Column("backward ms", _plain("backward ms", rank=2)),
    Column("both ms", _plain("both ms")),
    Column("layers timed", _plain("layers timed", rank=3)),
    *(
        Column(
            f"time over {SERIES[name].label}",
            (Form(0, _over(name, _median)), Form(1, _over(name, ratio_spread)), Form(10, _over(name, ratio))),
        )
        for name in RATIO_TARGETS
    ),
)


def _call(row: Record) -> dict[str, object]:
    return {
        "form": row["form"],
        "x": shape_name(row),
        "dtype": row["dtype"],
        "direction": row["direction"],
        "parity": row["parity"] or "",
        **{f"{name} ms": significant(row[f"{name}_ms"]) for name in CONTENDERS},
        "fused of copy rate": percent(row["fused_copy_percent"]),
        "status": row["status"],
    }
