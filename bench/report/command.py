"""Renders the reports of a run again. Imports no torch."""

from pathlib import Path

import click

from bench.record import journal
from bench.report.conclude import conclude
from bench.terminal.exits import UNJUDGED, Exit
from bench.terminal.options import (
    OUTPUT_OPTIONS,
    RUN_DIRECTORY,
    epilog,
    grouped,
    writes_to,
)
from bench.terminal.output import Output


@click.command(epilog=epilog("resbench report reports/quick-20260102-030405", exits=UNJUDGED))
@click.argument("directory", type=RUN_DIRECTORY)
@grouped(OUTPUT_OPTIONS)
def report(*, directory: Path, quiet: bool, as_json: bool) -> None:
    """Render the reports of a run again, from its journal.

    Ends with 0 once they are written, whatever the outcome of the run.
    """
    writes_to(directory)
    done = journal.read(directory)
    conclude(Output(quiet=quiet, as_json=as_json), done, Exit.VALID, directory=directory, lines=done.notices)
