"""The cases that a run has left, and the command that goes on with it. Imports no torch."""

import os
import shlex
import sys
from itertools import groupby
from pathlib import Path

from bench.render.text import count
from bench.types import Case, Run
from resnet.models.table import pixels

_NAMED = 8  # cells that are named; a large sweep has hundreds


def lines(run: Run, directory: Path | None) -> list[str]:
    """The cases left, and the command to go on if there is a directory; nothing where every case has a result."""
    if not run.pending:
        return []
    why = run.sessions[-1].interrupted if run.sessions else ""
    cells = [_cell(list(cases)) for _, cases in groupby(run.pending, key=_cell_of)]
    more = [f"  and {count(len(cells) - _NAMED, 'other cell')}"] if len(cells) > _NAMED else []
    return [
        f"{len(run.pending)} of {count(len(run.plan.cases), 'case')} were not run{f' ({why})' if why else ''}:",
        *cells[:_NAMED],
        *more,
        *([f"go on with: {run_command()} --resume {shlex.quote(str(directory))}"] if directory else []),
    ]


def run_command() -> str:
    """`resbench run` as the person at this terminal calls it: what runs inside nox is on no path outside of it."""
    if os.environ.get("NOX_CURRENT_SESSION") == "bench":
        return "nox -s bench --"
    return "python -m bench run" if Path(sys.argv[0]).name == "__main__.py" else "resbench run"


def _cell_of(case: Case) -> tuple[object, ...]:
    return case.model, case.mode, case.precision, case.batch_size, case.image_size, case.kind


def _cell(cases: list[Case]) -> str:
    """A line for cases that differ by their path alone."""
    first = cases[0]
    batch = "largest batch" if first.kind == "max-batch" else f"batch {first.batch_size}"
    place = f"{first.model} {first.mode} {first.precision}, {batch}, {pixels(first.model, first.image_size)} px"
    return f"  {place}: {', '.join(case.path for case in cases)}"
