"""The short table that `resbench kernels` ends with."""

from rich.table import Table

from bench import listings
from bench.kernel_types import KernelRun
from bench.report.kernel_rows import CONTENDERS, shape_name, whole
from bench.report.kernel_totals import RATIO_TARGETS, Total, totals
from bench.report.records import Record
from bench.report.roofline import SERIES
from bench.report.text import percent, ratio, significant
from bench.stats import Interval


def summary(run: KernelRun, rows: list[Record]) -> Table:
    """All work of each network; where no network was asked for, every call."""
    sums = totals(rows, run.survey.request.models)
    if sums:
        return listings.table([_sum(run, total) for total in sums], title="all work of one step")
    return listings.table([_call(row) for row in whole(rows)])


def _sum(run: KernelRun, total: Total) -> dict[str, object]:
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
        **{f"time over {SERIES[name].label}": _ratio(total.over.get(name)) for name in RATIO_TARGETS},
    }


def _ratio(found: Interval | None) -> str:
    return "" if found is None else ratio(found.median, found.low, found.high)


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
