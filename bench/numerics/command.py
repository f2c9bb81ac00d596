"""Writes the page of numerics: how exact the block is that never writes its widest tensors. Imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import click

from bench.machine.command import device_found
from bench.render.files import require_writable
from bench.terminal.exits import UNJUDGED, Exit
from bench.terminal.options import OUTPUT_OPTIONS, epilog, grouped, writes_to
from bench.terminal.output import Output
from bench.terminal.progress import bar
from bench.types import Device
from bench.workers.entry import remote
from bench.workers.parent import Terms

if TYPE_CHECKING:
    from bench.numerics import worker
else:
    worker = remote("bench.numerics.worker")

_TIMEOUT_S = 4 * 3600.0


@click.command(
    epilog=epilog(
        "resbench numerics --out docs/numerics.md",
        "resbench numerics --out gpu.md --device cuda",
        exits=UNJUDGED,
    )
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The page to write; a CSV file of the same name beside it has every number.",
)
@click.option(
    "--device", type=click.Choice(get_args(Device)), help="Where to run. [default: cuda where there is a GPU]"
)
@grouped(OUTPUT_OPTIONS)
def numerics(*, out: Path, device: str | None, quiet: bool, as_json: bool) -> None:
    """Measure the errors of bottleneck blocks against fp64, beside eager's, and write a page of them.

    Without a GPU the kernels run in Triton's interpreter, which takes some minutes.
    """
    output = Output(quiet=quiet, as_json=as_json)
    require_writable(out)
    writes_to(out.parent)
    with bar(output.console()) as progress:
        task = progress.add_task("starting", total=None)
        terms = Terms(timeout_s=_TIMEOUT_S, on_phase=lambda phase: progress.update(task, description=phase))
        terms.call(worker.write, out, cast("Device | None", device) or device_found())
    output.finish([], Exit.VALID, files=[out, out.with_suffix(".csv")])
