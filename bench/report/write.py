"""The files of a run directory that are rendered from its journal, at any time and as often as wanted."""

from dataclasses import asdict
from pathlib import Path

import msgspec
import pandas as pd
from matplotlib.figure import Figure

from bench.render import csv
from bench.render.figures import FORMATS, encode
from bench.render.files import replace_file
from bench.render.records import Record
from bench.report import markdown, plots
from bench.types import Run
from bench.workers.errors import explained


def write(directory: Path, run: Run, table: pd.DataFrame, rows: list[Record]) -> list[Path]:
    """Render results.csv, report.md, environment.json and plots/*.svg, *.png, and return those files.

    `table` is the run's (`bench.record.metrics.frame`), `rows` are its records in reading order
    (`bench.report.order.records`). Each file is replaced whole, so that a reader never sees half of one; pictures of an
    earlier rendering that have no data any more are removed.

    Raises:
        ValueError: the directory cannot be written to.
    """
    texts = {
        "results.csv": csv.render(table),
        "report.md": markdown.render(run, rows),
        "environment.json": environment_json(run),
    }
    pictures = _pictures(plots.figures(rows))
    files = pictures | {name: text.encode() for name, text in texts.items()}
    with explained(f"cannot write the report to {directory}", "make it writable, then run resbench report"):
        for picture in plots.PICTURES:
            for file_format in FORMATS:
                if f"plots/{picture.name}.{file_format}" not in files:
                    (directory / "plots" / f"{picture.name}.{file_format}").unlink(missing_ok=True)
        return [replace_file(directory / name, data) for name, data in files.items()]


def environment_json(run: Run) -> str:
    """The circumstances of a run: facts with their hash, measured ceilings, preset, command and settings.

    It names the sources that differ from the commit; the journal has a digest of each source.
    """
    environment, ceilings = run.environment, run.ceilings
    content = {
        "hash": environment.hash if environment else None,
        "facts": environment.facts if environment else None,
        **({"changed_sources": environment.changed_sources} if environment and environment.changed_sources else {}),
        "ceilings": asdict(ceilings) if ceilings else None,
        "preset": run.plan.name,
        "command": run.plan.command,
        "settings": asdict(run.plan.settings),
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n"


def _pictures(figures: dict[str, Figure]) -> dict[str, bytes]:
    return {
        f"plots/{name}.{file_format}": encode(figure, file_format)
        for name, figure in figures.items()
        for file_format in FORMATS
    }
