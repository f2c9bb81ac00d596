"""Does the harness measure what an independent loop measures? `python -m bench.compare.agreement`. Worker side.

The harness's program and timing against `torch.utils.benchmark` over torchvision's model of the same architecture,
with a step written down here once more. Both in one process on one device, by turns in the order ABBA.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import cast, get_args

import click
import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.utils.benchmark import Timer

from bench.machine import environment
from bench.measure import memory, timing
from bench.measure.inputs import make_batch, make_program
from bench.stats import median_interval, speedups
from bench.run.against_eager import Turn, rounds
from bench.types import Case, Device, Mode, Precision, Settings
from resnet.models.table import DEPTHS
from resnet.paths import PATHS

TOLERANCE = 0.05  # relative difference of the throughputs that counts as agreement
DISAGREE = 3  # exit code

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def harness_turns(case: Case, settings: Settings) -> Turn:
    """As a worker measures: the case's program, warmed up, by the harness's clock and stop rule."""
    program = make_program(case, settings)
    images, labels = make_batch(case.batch_size, case.image_size, settings.seed, case.device)
    images = program.place(images)
    clock = timing.CLOCKS[case.device]()

    def step() -> object:
        return program.step(images, labels)

    timing.first_call(step, clock)
    _, step_ms = timing.warm_up(step, clock, settings)
    return lambda: list(timing.measure(step, clock, settings, step_ms=step_ms).samples_ms)


def independent_turns(case: Case, settings: Settings) -> Turn:
    """`torch.utils.benchmark` over `independent_step`, for the time that the harness may take."""
    timer = Timer("step()", globals={"step": independent_step(case)}, num_threads=torch.get_num_threads())
    timer.timeit(3)
    return lambda: [1e3 * s for s in timer.blocked_autorange(min_run_time=settings.sample_budget_s).times]


def independent_step(case: Case) -> Callable[[], None]:
    """A step of torchvision's model, eager, contiguous; nothing of it is the harness's."""
    from torchvision.models import get_model  # noqa: PLC0415 - takes a second

    train, shape = case.mode == "train", (case.batch_size, 3, case.image_size, case.image_size)
    model = get_model(case.model).to(case.device).train(train)
    images = torch.randn(shape, device=case.device)
    labels = torch.randint(1000, (case.batch_size,), device=case.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3, momentum=0.9, weight_decay=1e-4, fused=True)
    scaler = torch.amp.GradScaler(case.device, enabled=case.precision == "fp16")
    dtype = _AUTOCAST.get(case.precision)

    def step() -> None:
        with torch.inference_mode(not train):
            with torch.autocast(case.device, dtype) if dtype else nullcontext():
                logits = model(images)
            if train:
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(logits.float(), labels)).backward()  # type: ignore[no-untyped-call]
                scaler.step(optimizer)
                scaler.update()

    return step


def record(case: Case, harness_ms: Sequence[list[float]], independent_ms: Sequence[list[float]]) -> dict[str, object]:
    """What was found, with every sample of every turn. `ratio` is the harness's throughput over the independent one."""
    ratio = median_interval(speedups(independent_ms, harness_ms))
    return {
        "case": case.key,
        "harness_images_per_s": case.batch_size / median(chain(*harness_ms)) * 1e3,
        "independent_images_per_s": case.batch_size / median(chain(*independent_ms)) * 1e3,
        "ratio": ratio.median,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "agrees": abs(ratio.median - 1) <= TOLERANCE,
        "tolerance": TOLERANCE,
        "harness_ms": harness_ms,
        "independent_ms": independent_ms,
        "environment": environment.collect(case.device).facts,
    }


@click.command(epilog=f"Exit codes: 0 they agree within {TOLERANCE:.0%}, 2 bad usage, {DISAGREE} they do not agree.")
@click.option("--model", type=click.Choice(tuple(DEPTHS)), default="resnet18", show_default=True)
@click.option("--mode", type=click.Choice(get_args(Mode)), default="infer", show_default=True)
@click.option("--precision", type=click.Choice(get_args(Precision)), default="fp32", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--image-size", type=click.IntRange(32), default=224, show_default=True)
@click.option("--path", type=click.Choice([path.name for path in PATHS]), default="eager", show_default=True)
@click.option("--device", type=click.Choice(get_args(Device)), help="[default: cuda where there is a GPU]")
@click.option("--rounds", "rounds_", type=click.IntRange(1), default=15, show_default=True, help="Turns of each.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True, help="Of one turn.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write JSON with every sample here.")
def main(
    *,
    model: str,
    mode: str,
    precision: str,
    batch_size: int,
    image_size: int,
    path: str,
    device: str | None,
    rounds_: int,
    seconds: float,
    out: Path | None,
) -> None:
    """Measure one case with the harness and with an independent loop, interleaved, and compare.

    The loop runs torchvision's eager model: only the path eager is bound to agree with it.
    """
    case = Case(
        model=model,
        mode=cast("Mode", mode),
        precision=cast("Precision", precision),
        batch_size=batch_size,
        image_size=image_size,
        path=path,
        device=cast("Device", device or ("cuda" if torch.cuda.is_available() else "cpu")),
    )
    settings = Settings(warmup_budget_s=seconds, sample_budget_s=seconds)
    with memory.freed_is_kept(case.device):  # as in the harness's workers
        turns = {"harness": harness_turns(case, settings), "independent": independent_turns(case, settings)}
        taken = list(islice(rounds(turns), rounds_))
    found = record(case, *([turn[name] for turn in taken] for name in turns))
    click.echo(
        f"{case.key}: harness {found['harness_images_per_s']:.2f} img/s, independent loop "
        f"{found['independent_images_per_s']:.2f} img/s, ratio {found['ratio']:.3f} "
        f"[{found['ratio_low']:.3f}, {found['ratio_high']:.3f}]"
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if found["agrees"] else DISAGREE)


if __name__ == "__main__":
    main()
