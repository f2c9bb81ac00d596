"""Does the harness measure what an independent loop measures? `resbench agreement`. Worker side.

The harness's program and timing against `torch.utils.benchmark` over torchvision's model of the same architecture,
with a step written down here once more. Both in one process on one device, by turns in the order ABBA.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain, islice
from statistics import median

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.utils.benchmark import Timer

from bench.machine import environment
from bench.measure import malloc, timing
from bench.measure.inputs import make_batch, make_program
from bench.measure.turns import Turn, rounds
from bench.stats import median_interval, speedups
from bench.types import Case, Settings
from bench.workers.child import announce
from resnet.models.table import network_of

TOLERANCE = 0.05  # relative difference of the throughputs that counts as agreement

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def agreement_of(case: Case, settings: Settings, number: int) -> dict[str, object]:
    """The record of `number` turns of each; tells the parent how many rounds are done."""
    with malloc.freed_is_kept(case.device):  # as in the harness's workers
        turns = {"harness": harness_turns(case, settings), "independent": independent_turns(case, settings)}
        taken = []
        for samples in islice(rounds(turns), number):
            taken.append(samples)
            announce(str(len(taken)))
    return record(case, *([samples[name] for samples in taken] for name in turns))


def harness_turns(case: Case, settings: Settings) -> Turn:
    """Turns as a worker takes them: the case's program, warmed up, by the harness's clock and stop rule."""
    program = make_program(case, settings)
    images, labels = make_batch(case, settings.seed)
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
    """A step of torchvision's model, eager, contiguous; none of it is the harness's."""
    from torchvision.models import get_model  # noqa: PLC0415 - takes a second

    train, network = case.mode == "train", network_of(case.model)
    model = get_model(case.model).to(case.device).train(train)
    images = torch.randn(network.images(case.batch_size, case.image_size), device=case.device)
    labels = torch.randint(network.classes, (case.batch_size,), device=case.device)
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
    """The comparison, with every sample of every turn. `ratio` is the harness's throughput over the independent one."""
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
