"""Compares the harness with an independent loop. Imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
import msgspec

from bench.machine.command import device_found
from bench.render.files import require_writable, write_file
from bench.terminal.exits import Exit
from bench.terminal.options import OUTPUT_OPTIONS, epilog, grouped, writes_to
from bench.terminal.output import Output
from bench.terminal.progress import bar
from bench.terminal.wrapped import say
from bench.types import Case, Device, Mode, Precision, Settings
from bench.workers.entry import remote
from bench.workers.parent import Terms
from resnet.models.table import NETWORKS
from resnet.paths import PATHS

if TYPE_CHECKING:
    from bench.compare import agreement as worker
else:
    worker = remote("bench.compare.agreement")

COMPARABLE = tuple(name for name, network in NETWORKS.items() if network.published)  # torchvision has them
_TIMEOUT_S = 3600.0
_EXITS = {
    Exit.VALID: "they agree",
    Exit.USAGE: "bad usage: nothing was measured",
    Exit.FAILED: "they do not agree, torch does not work here, or Ctrl-C",
}


@click.command(
    epilog=epilog(
        "resbench agreement",
        "resbench agreement --model resnet50 --mode train --precision bf16 --batch-size 256 --device cuda",
        exits=_EXITS,
    )
)
@click.option("--model", type=click.Choice(COMPARABLE), default="resnet18", show_default=True)
@click.option("--mode", type=click.Choice(get_args(Mode)), default="infer", show_default=True)
@click.option("--precision", type=click.Choice(get_args(Precision)), default="fp32", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--image-size", type=click.IntRange(1), help="Height in pixels. [default: the network's own]")
@click.option(
    "--path",
    type=click.Choice([path.name for path in PATHS]),
    metavar="NAME",
    default="eager",
    show_default=True,
    help="A name from `resbench list paths`.",
)
@click.option(
    "--device", type=click.Choice(get_args(Device)), help="Where to run. [default: cuda where there is a GPU]"
)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True, help="Number of turns of each.")
@click.option(
    "--seconds", type=click.FloatRange(0.01), default=2.0, show_default=True, help="Length of a turn in seconds."
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write JSON with every sample to this file."
)
@grouped(OUTPUT_OPTIONS)
@click.pass_context
def agreement(
    ctx: click.Context,
    /,
    *,
    model: str,
    image_size: int | None,
    rounds: int,
    seconds: float,
    out: Path | None,
    quiet: bool,
    as_json: bool,
    device: str | None,
    **axes: object,
) -> None:
    """Measure one case with the harness and with an independent loop, interleaved, and compare.

    The loop runs torchvision's eager model: only the path eager has to agree with it. The two agree if their
    throughputs differ by at most 5 %.
    """
    if out is not None:
        require_writable(out)
    writes_to(out.parent if out else None)
    network = NETWORKS[model]
    size = network.height(image_size)
    case = msgspec.convert({**axes, "model": model, "image_size": size, "device": device or device_found()}, Case)
    if problem := network.why_too_small(case.image_size):
        raise ValueError(f"--image-size: {problem}")
    settings = Settings(warmup_budget_s=seconds, sample_budget_s=seconds)
    output = Output(quiet=quiet, as_json=as_json)
    with bar(output.console()) as progress:
        task = progress.add_task(case.key, total=rounds)
        terms = Terms(timeout_s=_TIMEOUT_S, on_phase=lambda phase: progress.update(task, completed=int(phase)))
        record = terms.call(worker.agreement_of, case, settings, rounds)
    if not as_json:
        say(
            output.console(),
            f"{case.key}: harness {record['harness_images_per_s']:.2f} img/s, independent loop "
            f"{record['independent_images_per_s']:.2f} img/s, ratio {record['ratio']:.3f} "
            f"[{record['ratio_low']:.3f}, {record['ratio_high']:.3f}]",
        )
    ends = Exit.VALID if record["agrees"] else Exit.FAILED
    if out is not None:
        write_file(out, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    output.finish([record], ends, files=[out] if out else [])
    ctx.exit(ends)
