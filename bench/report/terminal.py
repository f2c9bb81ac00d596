"""The table that a run ends with in the terminal."""

import pandas as pd
from rich.table import Table
from rich.text import Text

from bench.options import STYLES
from bench.report.records import Record, grouped, records, setup, varying
from bench.report.text import MISSING, count, integer, interval, ratio, size
from bench.types import Status

PLACES = {"image_size": "image", "device": "device", "world_size": "processes"}


def summary(frame: pd.DataFrame) -> Table:
    """One line a case, in reading order; unsupported cases are only counted, in the caption."""
    rows = records(frame)
    shown = [row for row in rows if row["status"] != Status.UNSUPPORTED]
    skipped = len(rows) - len(shown)
    table = Table(caption=f"{count(skipped, 'case')} unsupported here: see report.md" if skipped else None)
    places = [name for name in PLACES if name in varying(shown)]
    for name in ("model", "mode", "precision"):
        table.add_column(name)
    table.add_column("batch", justify="right")
    for name in places:
        table.add_column(PLACES[name], justify="right")
    for name in ("path", "status"):
        table.add_column(name)
    for name in ("img/s", "vs eager", "peak memory"):
        table.add_column(name, justify="right")
    table.add_column("parity")
    for _, cell in grouped(shown, lambda row: (*setup(row), row["batch_size"])):
        for row in cell:
            table.add_row(*_cells(row, places))
        table.add_section()
    return table


def _cells(row: Record, places: list[str]) -> list[str | Text]:
    speed = interval(row["images_per_s"], row["images_per_s_low"], row["images_per_s_high"])
    speedup = ratio(row["speedup_vs_eager"], row["speedup_vs_eager_low"], row["speedup_vs_eager_high"])
    return [
        row["model"],
        row["mode"],
        row["precision"],
        integer(row["batch_size"]),
        *(str(row[name]) for name in places),
        row["path"],
        Text(row["status"], style=STYLES[Status(row["status"])]),
        speed,
        speedup,
        size(row["peak_allocated_bytes"]),
        Text(row["parity"] or MISSING, style="bold red" if row["parity"] == "fail" else ""),
    ]
