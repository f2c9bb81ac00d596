"""The files of a run directory that are rendered from its journal, at any time and as often as wanted."""

import os
from dataclasses import asdict
from pathlib import Path

import msgspec
from matplotlib.figure import Figure

from bench.record.metrics import frame
from bench.render import csv
from bench.report import markdown, plots
from bench.types import Run


def write(directory: Path, run: Run) -> list[Path]:
    """Render results.csv, report.md, environment.json and plots/*.svg, *.png, and return those files.

    Each file is replaced whole, so that a reader never sees half of one; pictures of an earlier rendering that have
    no data any more are removed.

    Raises:
        ValueError: the directory cannot be written to.
    """
    table = frame(run)
    texts = {
        "results.csv": csv.render(table),
        "report.md": markdown.render(run, table),
        "environment.json": environment_json(run),
    }
    pictures = _pictures(plots.figures(table))
    files = pictures | {name: text.encode() for name, text in texts.items()}
    try:
        for picture in plots.PICTURES:
            for kind in plots.KINDS:
                if f"plots/{picture.name}.{kind}" not in files:
                    (directory / "plots" / f"{picture.name}.{kind}").unlink(missing_ok=True)
        return [replace_file(directory / name, data) for name, data in files.items()]
    except OSError as error:
        raise ValueError(
            f"cannot write the report to {directory}: {error.strerror}; make it writable, then run resbench report"
        ) from error


def environment_json(run: Run) -> str:
    """Where and how the run was made: facts with their hash, measured ceilings, preset, command and settings.

    Of the sources it names those that differ from the commit; the journal has a digest of each.
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
        f"plots/{name}.{kind}": plots.encode(figure, kind) for name, figure in figures.items() for kind in plots.KINDS
    }


def replace_file(path: Path, data: bytes) -> Path:
    """Write a file whole, so that a reader never sees half of one, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
