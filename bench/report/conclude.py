"""The end of a command that ran cases: it writes the reports, and prints them in short."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType

from bench.terminal.exits import Exit
from bench.terminal.output import Output
from bench.types import Run


def conclude(
    output: Output,
    run: Run,
    ends: Exit,
    *,
    directory: Path | None,
    files: Sequence[Path] = (),
    lines: Sequence[str] = (),
    table: RenderableType | None = None,
) -> None:
    """Write the reports to `directory` unless it is None, then print how the command ends.

    It prints a table (the summary of the run unless another is given), why cases have no figures, the verdicts, the
    `lines`, and the names of the reports and of the `files` that were written before.

    Raises:
        ValueError: the directory cannot be written to.
    """
    # pandas and matplotlib take about a second: not for --help to wait for
    from bench.record.metrics import frame  # noqa: PLC0415
    from bench.report import closing, order, terminal, write  # noqa: PLC0415

    results = frame(run)
    rows = order.records(results)
    output.console().print()  # below the lines of the cases
    output.finish(
        rows,
        ends,
        files=[*files, *(write.write(directory, run, results, rows) if directory else ())],
        lines=[*closing.lines(rows, len(run.pending)), *lines],
        table=table or terminal.summary(rows),
    )
