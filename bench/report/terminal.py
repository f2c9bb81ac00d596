"""The table that a run ends with in the terminal."""

from collections.abc import Callable
from typing import Any

from rich.console import Group

from bench.record.rows import wall_and_measured_s
from bench.render.records import Record
from bench.render.text import MISSING, integer, interval, ratio, ratio_spread, significant, size, spread
from bench.sweep.cell import AXES, values
from bench.terminal.sheet import Column, Form, Sheet
from bench.terminal.tables import STYLES, table
from bench.types import Result, Run, Status
from resnet.models.table import pixels


def _ends(name: str, show: Callable[[Any, Any, Any], str]) -> Callable[[Any], str]:
    """A figure with the ends of its interval."""
    return lambda row: show(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _value(name: str, show: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda row: show(row[name])


def _across_precisions(show: Callable[[Any], str]) -> Callable[[Any], str]:
    """A figure over eager in fp32; not for rows in fp32, where the column beside it says the same."""
    return lambda row: MISSING if row["precision"] == "fp32" else show(row)


def _status(row: Any) -> str:  # noqa: ANN401 - a row
    return STYLES[Status(row["status"])]


def _parity(row: Any) -> str:  # noqa: ANN401 - a row
    """The parity, where it is not what the status says already."""
    unsaid = row["images_per_s"] is not None and row["parity"] != "pass"
    return "not checked" if unsaid else ""


PATH = Column("path", (Form(0, _value("path", str)),), "left", key=True)
STATUS = Column("status", (Form(0, _value("status", str)),), "left", _status)
FP32 = "speedup_vs_eager_fp32"

# Ranks: how sure a figure is comes before anything else is shown; of the axes see `bench.terminal.sheet.AXES_RANK`.
COLUMNS = (
    PATH,
    STATUS,
    Column("img/s", (
        Form(0, _value("images_per_s", significant)),
        Form(2, _ends("images_per_s", spread)),
        Form(13, _ends("images_per_s", interval)),
    )),
    Column("vs eager", (
        Form(0, _value("speedup_vs_eager", ratio)),
        Form(1, _ends("speedup_vs_eager", ratio_spread)),
        Form(12, _ends("speedup_vs_eager", ratio)),
    )),
    Column("vs eager fp32", (
        Form(10, _across_precisions(_value(FP32, ratio))),
        Form(11, _across_precisions(_ends(FP32, ratio_spread))),
        Form(15, _across_precisions(_ends(FP32, ratio))),
    )),
    Column("peak memory", (Form(0, _value("peak_allocated_bytes", size)),)),
    Column("peak vs eager", (Form(14, _value("peak_vs_eager", ratio)),)),
    Column("parity", (Form(0, _parity),), "left", lambda _: "bold"),
)  # fmt: skip
LARGEST = (
    PATH,
    STATUS,
    Column("largest batch", (Form(0, _value("max_batch_size", integer)),)),
)

AXES_OF_A_SEARCH = tuple(axis for axis in AXES if axis.name != "batch_size")
INTERVALS = "± or [ ]: 95 % interval"


def summary(records: list[Record]) -> Group:
    """One line a case, in reading order, without unsupported cases; searches for the largest batch below."""
    rows = [
        {**row, "image": pixels(row["model"], row["image_size"])}
        for row in records
        if row["status"] != Status.UNSUPPORTED
    ]
    searches = [row for row in rows if row["kind"] == "max-batch"]
    others = [row for row in rows if row["kind"] != "max-batch"]
    cases = Sheet(
        rows=others,
        columns=COLUMNS,
        axes=AXES,
        note=INTERVALS if any(row["images_per_s"] for row in others) else "",
        elsewhere="report.md has them",
    )
    largest = Sheet(rows=searches, columns=LARGEST, axes=AXES_OF_A_SEARCH, title="largest batch that fits")
    return Group(*(table for table in (cases, largest) if table.rows))


def verdicts(run: Run) -> Sheet:
    """The parity of every case that can run here: its worst tensor beside eager's own error, and where it diverges."""
    rows = [_verdict(result) for result in run.results if result.status is not Status.UNSUPPORTED]
    return table(rows, axes=AXES, later=("worst tensor", "first layer", "eager", "tensors"))


def _verdict(result: Result) -> dict[str, object]:
    case, parity = result.case, result.parity
    return {
        **values(case),
        "path": case.path,
        "verdict": result.status.value,
        "tensors": parity.tensors if parity else None,
        "worst tensor": parity.worst.tensor if parity else "",
        "error": parity.worst.error if parity else None,
        "eager": parity.worst.eager_error if parity else None,
        "allowed": parity.worst.tolerance if parity else None,
        "first layer": parity.first_layer if parity else "",
    }


def overhead(run: Run) -> str:
    """One line: the wall time of the run over the time inside its measured regions (`MEASURED_PHASES`)."""
    wall_s, measured_s = wall_and_measured_s(run)
    ratio = f": {wall_s / measured_s:.2f} times as long" if measured_s else ""
    return f"harness overhead: {wall_s:.1f} s of wall time for {measured_s:.1f} s of warm-up, samples and turns{ratio}"
