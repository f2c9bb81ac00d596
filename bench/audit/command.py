"""`resbench audit`: compiles the Triton kernels for GPUs that need not be here, and judges them. Imports no torch."""

import csv
from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench.workers import parent
from bench import listings
from bench.workers.errors import WorkerError
from bench.terminal.options import OUTPUT_OPTIONS, Exit, epilog, grouped, names, shape_option
from bench.terminal.output import Output
from bench.run.watch import bar
from bench.terminal.sheet import Axis, Sheet

# Those of kernels.launch.runtime and kernels.audit.audit, which import torch; a test keeps them equal.
ARCHS = ("sm_80", "sm_90", "sm_100")
DTYPES = ("fp32", "bf16", "fp16")
FORMS = (
    "bn", "bn+relu", "bn+residual+relu", "dual", "stem",
    "bottleneck", "bottleneck+projection", "bottleneck+downsampling",
    "running statistics",
)  # fmt: skip

EXITS = {
    Exit.VALID: "every kernel is as it should be",
    Exit.PARITY_FAILED: "a kernel spills, has narrow accesses or too much shared memory, or does not compile",
    Exit.USAGE: "bad usage: nothing was compiled",
    Exit.FAILED: "a compiler died, or Ctrl-C",
}
AXES = (Axis("arch", "arch"),)
LATER = ("occupancy", "shared B", "compiled", "stack B", "load bits", "store bits")  # what goes first is last
_TIMEOUT_S = 3600.0

Row = dict[str, Any]
Shape = tuple[int, ...]


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
@click.option("--arch", "archs", type=names, default=",".join(ARCHS), show_default=True, help="GPUs to compile for.")
@click.option("--dtypes", type=names, default=",".join(DTYPES), show_default=True, help="Of the activations.")
@click.option("--forms", type=names, default=",".join(FORMS), show_default=True, help="What is fused.")
@shape_option(
    "Of x, can be repeated. [default: those of resnet18 and resnet50 at batch 256 and 224 px, and some odd ones]"
)
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every compilation here."
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
    """Compile every Triton kernel for sm_80, sm_90 and sm_100, without a GPU, and see what came out.

    Forward and backward, training and evaluation, channels_last and NCHW (bottlenecks: channels_last, and fp32 also in
    TF32). A line of the table is the worst of its compilations: the most registers of a thread, bytes that it spills
    and bytes of its stack, the most shared memory of a program, the widest load and store, the narrowest main one, and
    the lowest occupancy. Main accesses are those of activations whose layout allows 128 bits. A spill, a narrower main
    access and more shared memory than the architecture gives a program are faults.
    """
    for option, given, allowed in (("--arch", archs, ARCHS), ("--dtypes", dtypes, DTYPES), ("--forms", forms, FORMS)):
        if unknown := [name for name in given if name not in allowed]:
            raise ValueError(f"{option} {','.join(unknown)} is unknown: choose of {', '.join(allowed)}")
    output = Output(quiet=quiet, as_json=as_json)
    _write(csv_file, "")  # refused now rather than in some minutes
    rows = _compiled(output.console(), archs, dtypes, forms, shapes)
    faults = [fault for row in rows for fault in row["faults"]]
    _write(csv_file, _csv(rows))
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
            rows: list[Row] = parent.call(
                "bench.audit.worker:examine", archs, dtypes, forms, shapes, timeout_s=_TIMEOUT_S, on_phase=show
            )
        except WorkerError as error:
            raise CompilerDied(f"the audit has no answer: {error}; try fewer at a time, e.g. --arch sm_90") from error
    return rows


def table(rows: Iterable[Row]) -> Sheet:
    return listings.table(summary(rows), axes=AXES, later=LATER, elsewhere="--csv writes every compilation")


def summary(rows: Iterable[Row]) -> listings.Rows:
    """A line for each architecture, kernel and form: the worst of its compilations."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        for form in row["forms"]:
            groups.setdefault((row["arch"], row["kernel"], form), []).append(row)
    return [
        {"arch": arch, "kernel": kernel, "form": form, "faults": sum(len(row["faults"]) for row in group)}
        | _worst([row for row in group if "registers" in row])
        for (arch, kernel, form), group in groups.items()
    ]


def _worst(compiled: list[Row]) -> dict[str, object]:
    return {name: worst(compiled) if compiled else None for name, worst in _WORST.items()}


def _largest(name: str) -> Callable[[list[Row]], object]:
    return lambda rows: max(row[name] for row in rows)


def _occupancy(rows: list[Row]) -> str:
    least = min(rows, key=lambda row: row["resident_warps"])
    return f"{least['resident_warps']} of {least['of_warps']} warps ({least['limited_by']})"


_WORST: dict[str, Callable[[list[Row]], object]] = {
    "compiled": len,
    "registers": _largest("registers"),
    "spilled B": _largest("spill_bytes"),
    "stack B": _largest("stack_bytes"),
    "shared B": lambda rows: max(row["static_shared_bytes"] + row["dynamic_shared_bytes"] for row in rows),
    "load bits": _largest("load_bits"),
    "store bits": _largest("store_bits"),
    "main bits": lambda rows: min((row["main_bits"] for row in rows if row["wide"]), default=None),
    "occupancy": _occupancy,
}


def _csv(rows: list[Row]) -> str:
    """Every compilation; lists are joined by spaces."""
    text = StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "; ".join(value) if isinstance(value, list) else value for name, value in row.items()})
    return text.getvalue()


def _write(file: Path | None, text: str) -> None:
    if file is None:
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror}; name a file that can be written") from error
