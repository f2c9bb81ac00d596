"""`resbench traffic`: the bytes and FLOPs that each way of running a network moves in a step. Imports no torch."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import click

from bench.machine.command import device_found
from bench.render.files import require_writable
from bench.terminal import tables
from bench.terminal.exits import UNJUDGED, Exit
from bench.terminal.options import OUTPUT_OPTIONS, epilog, grouped, names
from bench.terminal.output import Output
from bench.terminal.progress import bar
from bench.traffic import counters
from bench.traffic.machines import MACHINES
from bench.traffic.schemes import all_schemes, scheme_of
from bench.traffic.types import Counted, Request
from bench.types import Ceilings, Device, Mode, Precision
from bench.workers.entry import remote
from bench.workers.parent import call
from resnet.models.table import network_of

if TYPE_CHECKING:
    from bench.machine import ceilings
    from bench.traffic import worker
else:
    ceilings = remote("bench.machine.ceilings")
    worker = remote("bench.traffic.worker")


@click.command(
    epilog=epilog(
        "resbench traffic resnet50",
        "resbench traffic resnet50 --device h200 --paths compile,cudnn-fused,gram",
        "resbench traffic resnet50 --mode infer --batch 1 --device b200",
        "resbench traffic resnet50 --paths gram --layers",
        "resbench traffic resnet50 --device h200 --markdown docs/traffic.md",
        exits=UNJUDGED,
    )
)
@click.argument("model")
@click.option("--mode", type=click.Choice(get_args(Mode)), default="train", show_default=True, help="Kind of step.")
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="bf16",
    show_default=True,
    help="Precision of the activations.",
)
@click.option("--batch", "batch_size", type=int, default=256, show_default=True, help="Images per step.")
@click.option("--image-size", type=int, help="Height of the images in pixels. [default: the network's own]")
@click.option(
    "--paths",
    type=names,
    help="Names from `resbench list paths`, or inductor, cudnn-fused, folded. [default: every scheme]",
)
@click.option(
    "--device",
    type=click.Choice([*MACHINES, *get_args(Device)]),
    help="Device of the floor: a GPU by its data sheet, or this machine, measured. [default: this machine]",
)
@click.option("--layers", is_flag=True, help="List every operation.")
@click.option(
    "--counters/--no-counters",
    "with_counters",
    default=True,
    help="Also read this GPU's own counters, with ncu; takes some minutes. [default: where possible]",
)
@click.option(
    "--markdown", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write the tables to this page."
)
@grouped(OUTPUT_OPTIONS)
def traffic(
    *,
    model: str,
    mode: Mode,
    precision: Precision,
    batch_size: int,
    image_size: int | None,
    paths: Sequence[str] | None,
    device: str | None,
    layers: bool,
    with_counters: bool,
    page: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Count the bytes and FLOPs of one step of MODEL, for each way of running it, and the least time they take.

    The counts come from shapes, on any machine: nothing is run with data or timed. The project's kernels declare what
    they move, library calls are counted by their tensors, and what cannot be run without data (torch.compile, cuDNN's
    fused graphs, the folded network) is counted by formulas over the same layers. Paths that move the same data are
    counted once. Loss and optimizer, the same for all, are left out.

    The floor is a sum over the operations: for each, the time of its bytes at the device's memory bandwidth or of its
    FLOPs at its rate of products, whichever is longer.

    On this machine's GPU, where Nsight Compute (ncu) is installed and may read the counters, each scheme is also run
    with data, and the bytes that passed between memory and caches stand beside those counted; --no-counters skips this.
    """
    request = Request(
        model=model,
        mode=mode,
        precision=precision,
        batch_size=batch_size,
        image_size=network_of(model).height(image_size),
        schemes=_schemes(paths, mode),
    )
    _require_values(request)
    if page is not None:
        require_writable(page)
    output = Output(quiet=quiet, as_json=as_json)
    name, rates = _ceilings(device, precision)
    schemes = call(worker.count, request)
    with bar(output.console()) as progress:
        task = progress.add_task("counting", total=None)
        seen, unseen = (
            counters.read(request, lambda scheme: progress.update(task, description=f"counters of {scheme}"))
            if with_counters and name == "cuda"
            else ((), ())
        )
    counted = Counted(
        request=request,
        traffic=tuple(sorted(schemes, key=lambda scheme: -scheme.bytes)),
        device=name,
        ceilings=rates,
        seen=seen,
        unseen=unseen,
    )
    _conclude(counted, output, page, layers=layers)


def _schemes(paths: Sequence[str] | None, mode: Mode) -> tuple[str, ...]:
    return tuple(dict.fromkeys(scheme_of(name, mode) for name in paths)) if paths else all_schemes(mode)


def _require_values(request: Request) -> None:
    """Refuse sizes that BatchNorm would refuse."""
    for option, value in (("--batch", request.batch_size), ("--image-size", request.image_size)):
        if value < 1:
            raise ValueError(f"{option} must be at least 1, not {value}")
    network = network_of(request.model)
    if request.mode == "train" and network.last_stage(request.batch_size, request.image_size) == 1:
        raise ValueError(
            f"one image of {request.image_size} px leaves one value per channel, on which BatchNorm cannot train: "
            f"choose a larger --batch, or --image-size above {network.reduction}"
        )


def _ceilings(device: str | None, precision: Precision) -> tuple[str, Ceilings]:
    """The device of the floor, and its rates: those of its data sheet, or rates measured here in some seconds."""
    if device in MACHINES:
        return device, MACHINES[device].ceilings
    here = device_found()
    if device == "cuda" and here != "cuda":
        raise ValueError(
            f"torch finds no CUDA device here: choose another --device, e.g. a GPU by its data sheet: "
            f"{', '.join(MACHINES)}"
        )
    here = cast("Device | None", device) or here
    rates = call(ceilings.measure_ceilings, here, [precision])
    if precision not in rates.matmul_flops_per_s:
        raise ValueError(
            f"{here} does not run {precision} here: choose another --precision, or another --device, e.g. a GPU by its "
            f"data sheet: {', '.join(MACHINES)}"
        )
    return here, rates


def _conclude(counted: Counted, output: Output, page: Path | None, *, layers: bool) -> None:
    # pandas takes about a second: not for --help to wait for
    from bench.traffic import report  # noqa: PLC0415

    files = [report.write_page(counted, page, _command(counted, page))] if page else []
    rows = report.records(counted, operations=layers)
    if not output.as_json:
        console = output.console()
        for scheme, lines in report.by_operation(counted) if layers else ():
            console.print(tables.table(lines, title=scheme))
        console.print(tables.table(report.by_part(counted), title="MB/image"))
    output.finish(
        rows,
        Exit.VALID,
        files=files,
        lines=[f"floor of {report.rates(counted)}", *counted.unseen],
        table=tables.table(report.totals(counted), later=report.LATER),
    )


def _command(counted: Counted, page: Path) -> str:
    """The command that writes the same page again, wherever it is read."""
    request = counted.request
    options = {
        "--mode": request.mode,
        "--precision": request.precision,
        "--batch": request.batch_size,
        "--image-size": request.image_size,
        "--paths": ",".join(request.schemes),
        "--device": counted.device,
        "--markdown": page,
    }
    if set(request.schemes) == set(all_schemes(request.mode)):
        options.pop("--paths")
    return shlex.join(
        ["resbench", "traffic", request.model, *(str(word) for option in options.items() for word in option)]
    )
