"""The functions that run inside a worker process: each public one is an entry of `bench.workers.parent.call`.

The fork server imports this module once, and with it torch and its compiler, so that importing them is no part of a
case's start-up or of its compile time. No import here may create a CUDA context.
"""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

import torch
import torch._inductor.compile_fx

from bench.machine import ceilings as limits
from bench.machine import environment
from bench.machine.requirements import why_unsupported
from bench.measure import cost, malloc, memory, out_of_memory, timing
from bench.measure.inputs import make_batch, make_model, make_program
from bench.parity import reference
from bench.run.case_run import CaseRun
from bench.types import (
    Case,
    Ceilings,
    Cost,
    Device,
    Environment,
    Reference,
    Result,
    Settings,
    Status,
)
from bench.workers.child import announce, serve
from bench.workers.errors import describe
from resnet.paths import PATHS_BY_NAME

_USABLE_MEMORY = 0.95  # of what is free, for a case on the CPU: it is refused memory before the machine is in trouble
_PROBE_STEPS = 2  # the second step also holds what the optimizer keeps


def survey(device: Device, weights: str) -> Environment:
    """The facts about this machine and its software, and about the weights."""
    return environment.collect(device, weights=weights)


def ceilings(device: Device, kept: Ceilings | None) -> Ceilings:
    """The ceilings of this device: those kept, unless they are beaten, or measured now, which takes some seconds."""
    return kept if kept and not limits.beaten(kept, device) else limits.measure_ceilings(device)


def inspect(cases: tuple[Case, ...]) -> dict[str, tuple[Cost, str]]:
    """The least work of each case, by its key, and why it cannot run on this machine (empty if it can)."""
    return {
        case.key: (
            cost.cost(case.model, case.mode, case.precision, case.batch_size, case.image_size),
            why_unsupported(case, PATHS_BY_NAME[case.path]) or "",
        )
        for case in cases
    }


def require_weights(models: tuple[str, ...], weights: str) -> None:
    """Load the weights into each of the models.

    Raises:
        ValueError: why they do not fit one of them, or are not there.
    """
    for model in models:
        make_model(model, 0, weights)


def prepare_reference(case: Case, settings: Settings, rates: Ceilings, scratch: Path) -> Reference:
    """The reference of a case, made in a process of its own: it leaves no trace in the case's memory."""
    announce("reference")
    with _own_resources(case):
        return reference.prepare(case, settings, rates, scratch)


def prepare_compiler(device: Device, tools: Path) -> None:
    """Let Inductor learn in `tools` what it learns once per machine and keeps for all programs.

    That is which vector instructions work, Triton's launcher and, in a place of its own, precompiled headers: some
    seconds that are no part of the time that compiling one network takes.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tools)
    torch.compile(torch.neg)(torch.ones(64, device=device))


def run_case(case: Case, settings: Settings, against: Reference, tools: Path | None, turns: bool) -> Result:
    """Check a case, and if it is to be measured time it and check it once more. Running out of memory is a result.

    Where it is measured and `turns` are wanted, it serves them (`bench.workers.child.serve`) before the second check.
    `tools` is the folder of `prepare_compiler`, for a case that compiles.
    """
    run = CaseRun(case, settings, against, turns=turns)
    with _own_resources(case, tools), malloc.freed_is_kept(case.device):
        try:
            return run.check_and_measure()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory.is_out_of_memory(error):
                raise
            return run.result(status=Status.OOM, reason=describe(error))


def run_baseline(case: Case, settings: Settings) -> None:
    """Serve turns of a case, for another one to be compared with.

    A few steps are warm-up enough: the other one has warmed the device, and `timing.turn` sees to the caches.
    """
    with _own_resources(case), malloc.freed_is_kept(case.device):
        program = make_program(case, settings)
        images, labels = make_batch(case, settings.seed)
        step, clock = partial(program.step, program.place(images), labels), timing.CLOCKS[case.device]()
        timing.first_call(step, clock)
        serve(partial(timing.turn, step, clock, step_ms=timing.rehearse(step, clock)))


def fits(case: Case, settings: Settings, tools: Path | None) -> bool:
    """Whether steps of the case fit the device's memory. `tools` as in `run_case`."""
    with _own_resources(case, tools):
        try:
            program = make_program(case, settings)
            images, labels = make_batch(case, settings.seed)
            announce("probe")
            for _ in range(_PROBE_STEPS):
                program.step(program.place(images), labels)
            timing.CLOCKS[case.device]().synchronize()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory.is_out_of_memory(error):
                raise
            return False
    return True


@contextmanager
def _own_resources(case: Case, tools: Path | None = None) -> Iterator[None]:
    """A compile cache of the case's own, and on the CPU a limit of its memory.

    The cache holds nothing but `tools`, so that compile times of the network are cold.
    """
    if case.device == "cpu":
        limit = int(memory.free_bytes("cpu") * _USABLE_MEMORY)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with TemporaryDirectory(prefix="resbench-compile-", ignore_cleanup_errors=True) as cache:
        if tools is not None:
            copytree(tools, cache, dirs_exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        yield
