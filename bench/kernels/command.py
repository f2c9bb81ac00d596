"""`resbench kernels`: argument handling, progress and how it ends. Imports no torch."""

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import click
from rich.text import Text

from bench.kernels import run as kernel_run
from bench.kernels.report.watch import watching
from bench.kernels.types import DTYPES, FORMS, Dtype, KernelMode, KernelRun, Request, Shape
from bench.terminal import tables
from bench.terminal.exits import Exit
from bench.terminal.options import (
    DEPTHS_OPTION,
    OUTPUT_OPTIONS,
    duration,
    epilog,
    grouped,
    models_of,
    names,
    shape_option,
    writes_to,
)
from bench.terminal.output import Output
from bench.types import Device
from bench.workers.entry import remote
from bench.workers.errors import explained
from bench.workers.parent import Terms
from bench.workers.places import TEMPORARY
from resnet.models.table import network_of

if TYPE_CHECKING:
    from bench.kernels import search
else:
    search = remote("bench.kernels.search")

SEARCH_TIMEOUT_S = 3600.0

_EXITS = {
    Exit.VALID: "done (what this machine cannot time is not a failure)",
    Exit.PARITY_FAILED: "parity failed in at least one op",
    Exit.USAGE: "bad usage: nothing was run or overwritten",
    Exit.FAILED: "some ops failed or were not run (crash, out of memory, Ctrl-C, budget)",
}


@click.command(
    epilog=epilog(
        "resbench kernels",
        "resbench kernels --depths 50 --forms dual,stem --dtypes bf16,fp32",
        "resbench kernels --depths 50 --forms bottleneck,bottleneck+downsampling",
        "resbench kernels --shape 256,64,56,56 --shape 32,512,7,7 --mode eval",
        "resbench kernels --budget 8m --out reports/kernels-h200",
        "resbench kernels --search --depths 50",
        exits=_EXITS,
    )
)
@click.option(
    "--models", type=names, help="Networks whose ops are measured. [default: resnet50,resnet18; none with --shape]"
)
@DEPTHS_OPTION
@shape_option("Another shape of x, for every form; may be repeated.")
@click.option(
    "--forms",
    type=names,
    help=f"Any of {', '.join(FORMS)}. [default: all]",
)
@click.option("--dtypes", type=names, default="bf16", show_default=True, help=f"Any of {', '.join(DTYPES)}.")
@click.option(
    "--mode",
    type=click.Choice(get_args(KernelMode)),
    default="train",
    help="BatchNorm by statistics of the batch, or by running ones. [default: train]",
)
@click.option("--batch-size", type=click.IntRange(1), help="Images per step. [default: 256 on a GPU, 8 on a CPU]")
@click.option("--image-size", type=click.IntRange(1), help="Height in pixels. [default: the network's own]")
@click.option(
    "--device", type=click.Choice(get_args(Device)), help="Where to run. [default: the GPU where there is one]"
)
@click.option(
    "--budget", type=duration, help="End within about this time, e.g. 8m, and report what was measured by then."
)
@click.option(
    "--search",
    is_flag=True,
    help="Instead of all this, try other tiles of every launch on a GPU, and cuBLAS for products too, and print the "
    "lines to paste into the tables of tiles.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="An empty or new directory. [default: reports/kernels-TIME]",
)
@grouped(OUTPUT_OPTIONS)
@click.pass_context
def kernels(
    ctx: click.Context,
    /,
    *,
    models: tuple[str, ...] | None,
    depths: tuple[str, ...] | None,
    shapes: tuple[Shape, ...],
    forms: tuple[str, ...] | None,
    dtypes: tuple[str, ...],
    mode: KernelMode,
    batch_size: int | None,
    image_size: int | None,
    device: Device | None,
    budget: float | None,
    search: bool,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Time the fused BatchNorms and bottlenecks beside eager, torch.compile and copies.

    Every form at every shape that resnet18 and resnet50 have is checked for parity and then timed, forward and
    backward: time, bytes, and the share of the rate of a large copy; on a GPU also each launch alone, beside its
    roofline. A bottleneck in evaluation mode runs forward only, without gradients. The results go to a report with a
    picture.

    Without a GPU, the kernels are checked and their bytes counted, and only eager, torch.compile and copies are timed,
    on the CPU; bottlenecks are only checked.
    """
    output = Output(quiet=quiet, as_json=as_json)
    request = Request(
        device=device,
        models=_models(models_of(models, depths) or (), image_size),
        shapes=shapes,
        forms=forms or (),
        dtypes=_dtypes(dtypes),
        mode=mode,
        batch_size=batch_size,
        image_size=image_size,
    )
    writes_to(out)
    if search:
        _search(request, output, budget)
        return
    with watching(output.console()) as watch:
        where = kernel_run.survey(request, watch.phase)
        directory = _fresh(out or Path("reports") / f"kernels-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
        writes_to(directory)
        watch.begin(f"{len(where.ops)} ops on {where.environment.facts['device']}", len(where.ops))
        if where.why_untimed:
            watch.line(Text(f"the fused kernels are not timed: {where.why_untimed}", "yellow"))
        callbacks = kernel_run.Callbacks(started=watch.started, finished=watch.finished)
        command = shlex.join(["resbench", *sys.argv[1:]])
        run = kernel_run.run(where, callbacks, command=command, budget_s=budget)
    ends = _ends(run)
    _conclude(run, directory, output, ends)
    ctx.exit(ends)


def _models(models: tuple[str, ...], image_size: int | None) -> tuple[str, ...]:
    for name in models:
        if problem := network_of(name).why_too_small(image_size):
            raise ValueError(f"--image-size: {problem}")
    return models


def _dtypes(dtypes: tuple[str, ...]) -> tuple[Dtype, ...]:
    if unknown := [name for name in dtypes if name not in DTYPES]:
        raise ValueError(f"unknown dtype {', '.join(unknown)}: choose from {', '.join(DTYPES)}")
    return cast("tuple[Dtype, ...]", dtypes)


def _fresh(directory: Path) -> Path:
    """The directory, made now: a place that cannot be written to is refused before anything is measured."""
    with explained(f"cannot write to {directory}", "name another directory with --out"):
        directory.mkdir(parents=True, exist_ok=True)
        if any(entry.name != TEMPORARY for entry in directory.iterdir()):
            raise ValueError(f"{directory} is not empty: name a new directory with --out")
    return directory


def _ends(run: KernelRun) -> Exit:
    if any(outcome.wrong for outcome in run.outcomes):
        return Exit.PARITY_FAILED
    if run.pending or any(outcome.failed for outcome in run.outcomes):
        return Exit.FAILED
    return Exit.VALID


def _conclude(run: KernelRun, directory: Path, output: Output, ends: Exit) -> None:
    # pandas and matplotlib take about a second: not for --help to wait for
    from bench.kernels.report import markdown, terminal  # noqa: PLC0415
    from bench.kernels.report.rows import records  # noqa: PLC0415

    rows = records(run)
    output.finish(
        rows,
        ends,
        files=markdown.write(directory, run),
        lines=[markdown.outcome(run), *markdown.target_sentences(run, rows)],
        table=terminal.summary(run, rows),
    )


def _search(request: Request, output: Output, budget: float | None) -> None:
    """Print the time of every candidate, and the lines to paste."""
    from bench.kernels.report import trials  # noqa: PLC0415 - pandas, as above

    with watching(output.console()) as watch:
        terms = Terms(timeout_s=SEARCH_TIMEOUT_S, on_phase=watch.phase)
        results = terms.call(search.search, request, budget)
    pasted = trials.paste(results)
    if output.as_json:
        output.json({"trials": results, "tiles": pasted})
        return
    console = output.console()
    for launch, rows in trials.tables(results).items():
        console.print(tables.table(rows, title=launch))
    for table, lines in pasted.items():
        console.print(f"for {table}:")
        for line in lines:
            click.echo(line)
