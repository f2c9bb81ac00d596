"""`resbench audit`: compiles the Triton kernels for GPUs that need not be here, and judges them. Imports no torch."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from bench.audit.report import csv_of, summary
from bench.audit.types import Row
from bench.kernels.types import DTYPES
from bench.kernels.types import FORMS as FUSED
from bench.render.files import require_writable, write_file
from bench.terminal import tables
from bench.terminal.exits import Exit
from bench.terminal.options import OUTPUT_OPTIONS, epilog, grouped, names, shape_option
from bench.terminal.output import Output
from bench.terminal.progress import bar
from bench.terminal.sheet import Axis, Sheet
from bench.workers.entry import remote
from bench.workers.errors import WorkerError
from bench.workers.parent import Terms

if TYPE_CHECKING:
    from bench.audit import worker
else:
    worker = remote("bench.audit.worker")

# Those of kernels.launch.runtime and kernels.audit.audit, which import torch; a test keeps them equal.
ARCHS = ("sm_80", "sm_90", "sm_100")
FORMS = (*FUSED, "running statistics")

EXITS = {
    Exit.VALID: "no kernel has a fault",
    Exit.PARITY_FAILED: "a kernel spills, has narrow accesses or too much shared memory, or does not compile",
    Exit.USAGE: "bad usage: nothing was compiled",
    Exit.FAILED: "a compiler died, or Ctrl-C",
}
AXES = (Axis("arch", "arch"),)
LATER = ("occupancy", "shared B", "compiled", "stack B", "load bits", "store bits")  # what goes first is last
_TIMEOUT_S = 3600.0

Shape = tuple[int, int, int, int]


class CompilerDied(click.ClickException):
    """The audit has no answer: one paragraph, no traceback."""

    exit_code = Exit.FAILED


@click.command(
    epilog=epilog(
        "resbench audit",
        "resbench audit --arch sm_90 --dtypes bf16",
        "resbench audit --arch sm_90,sm_100 --forms stem --shape 512,64,112,112",
        "resbench audit --arch sm_90 --forms bottleneck --shape 64,2048,7,7",
        "resbench audit --csv audit.csv",
        exits=EXITS,
    )
)
@click.option(
    "--arch", "archs", type=names, default=",".join(ARCHS), show_default=True, help="Architectures to compile for."
)
@click.option(
    "--dtypes",
    type=names,
    default=",".join(DTYPES),
    show_default=True,
    help="Precisions of the activations.",
)
@click.option("--forms", type=names, default=",".join(FORMS), show_default=True, help="Fused forms to compile.")
@shape_option(
    "Shape of x; may be repeated. [default: those of resnet18 and resnet50 at batch 256 and 224 px, and some odd ones]"
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write every compilation to this CSV file.",
)
@grouped(OUTPUT_OPTIONS)
@click.pass_context
def audit(
    ctx: click.Context,
    /,
    *,
    archs: Sequence[str],
    dtypes: Sequence[str],
    forms: Sequence[str],
    shapes: Sequence[Shape],
    csv_file: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compile every Triton kernel for sm_80, sm_90 and sm_100, without a GPU, and judge the result.

    Kernels are compiled for forward and backward, training and evaluation, channels_last and NCHW (bottlenecks:
    channels_last alone, and fp32 also in TF32). A line of the table shows the worst of its compilations: the most
    registers, spilled bytes and stack bytes of a thread, the most shared memory of a program, the widest load and
    store, the narrowest main access, and the lowest occupancy. Main accesses are those of activations whose layout
    allows 128 bits. A spill, a narrower main access, and more shared memory than the architecture gives a program are
    faults.
    """
    for option, given, allowed in (("--arch", archs, ARCHS), ("--dtypes", dtypes, DTYPES), ("--forms", forms, FORMS)):
        if unknown := [name for name in given if name not in allowed]:
            raise ValueError(f"{option} {','.join(unknown)} is unknown: choose from {', '.join(allowed)}")
    output = Output(quiet=quiet, as_json=as_json)
    if csv_file is not None:
        require_writable(csv_file)
    rows = _compiled(output.console(), archs, dtypes, forms, shapes)
    faults = [fault for row in rows for fault in row["faults"]]
    if csv_file is not None:
        write_file(csv_file, csv_of(rows).encode())
    ends = Exit.PARITY_FAILED if faults else Exit.VALID
    if as_json:
        output.json({"rows": rows, "faults": faults, "files": [csv_file] if csv_file else [], "exit_code": ends})
    else:
        console = output.console()
        console.print(table(rows))
        console.print(f"{len(rows)} compilations, {len(faults)} faults")
        if csv_file is not None:
            console.print("wrote:")
            click.echo(csv_file)
    for fault in faults:
        click.echo(fault, err=True)
    ctx.exit(ends)


def _compiled(
    console: Console, archs: Sequence[str], dtypes: Sequence[str], forms: Sequence[str], shapes: Sequence[Shape]
) -> list[Row]:
    with bar(console) as progress:
        task = progress.add_task("compiling", total=None)

        def show(phase: str) -> None:
            done, total = map(int, phase.split("/"))
            progress.update(task, completed=done, total=total)

        try:
            rows = Terms(timeout_s=_TIMEOUT_S, on_phase=show).call(worker.examine, archs, dtypes, forms, shapes)
        except WorkerError as error:
            raise CompilerDied(
                f"the audit has no answer: {error}; try fewer at a time, e.g. with --arch sm_90"
            ) from error
    return rows


def table(rows: Iterable[Row]) -> Sheet:
    return tables.table(summary(rows), axes=AXES, later=LATER, elsewhere="--csv writes every compilation")
