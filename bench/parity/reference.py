"""The fp64 reference of a cell and eager's own errors against it, at the timed batch or the largest that fits."""

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from bench.measure import cost, memory, out_of_memory
from bench.measure.inputs import make_model, make_program
from bench.parity import trajectory
from bench.types import Case, Ceilings, Reference, Settings
from resnet.precision import Precision
from resnet.program import Program

CHECKS = 2  # before timing and once more after it

_FP64_BYTES = 8
_TRANSIENT = 1.3  # gradients in flight and temporaries on top of what autograd keeps
_INFERENCE_SHARE = 0.25  # of the activations, alive at once without autograd
_USABLE_MEMORY = 0.8
_REFERENCE_EFFICIENCY = 0.5  # of the measured product rate, by a whole network in fp64


def prepare(case: Case, settings: Settings, ceilings: Ceilings, scratch: Path) -> Reference:
    """Make the reference of a case. fp64 trajectories in `scratch` are shared by paths and precisions."""
    batch_size = _affordable_batch(case, settings, ceilings)
    state = make_model(case.model, settings.seed, settings.weights).state_dict()
    while True:
        try:
            files = tuple(_trajectory(case, settings, batch_size, check, state, scratch) for check in range(CHECKS))
            break
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            batch_size //= 2
            if not (out_of_memory.is_out_of_memory(error) and batch_size):
                raise
            torch.cuda.empty_cache()
    return Reference(
        batch_size=batch_size,
        note="" if batch_size == case.batch_size else _note(case.batch_size, batch_size),
        files=tuple(map(str, files)),
        eager_errors=tuple(
            trajectory.errors(
                eager(case, settings, case.precision),
                state,
                inputs(case, settings, batch_size, check),
                file,
            )
            for check, file in enumerate(files)
        ),
    )


def inputs(case: Case, settings: Settings, batch_size: int, check: int) -> trajectory.Batches:
    """The batches of one check: other ones than those of every other check, and than those that are timed."""
    seed = settings.seed * CHECKS + check + 1
    return trajectory.batches(replace(case, batch_size=batch_size), seed=seed, steps=settings.parity_steps)


def _trajectory(
    case: Case, settings: Settings, batch_size: int, check: int, state: Mapping[str, Tensor], scratch: Path
) -> Path:
    file = scratch / f"{case.model}-{case.mode}-b{batch_size}-i{case.image_size}-{case.device}-{check}.pt"
    if not file.exists():
        program = eager(case, settings, "fp64")
        unfinished = file.with_suffix(".part")  # by a worker that is killed while it writes
        trajectory.save_reference(program, state, inputs(case, settings, batch_size, check), unfinished)
        unfinished.rename(file)
    return file


def eager(case: Case, settings: Settings, precision: Precision) -> Program:
    """The baseline of a case at some precision, not run yet."""
    return make_program(replace(case, path="eager"), settings, precision)


def _affordable_batch(case: Case, settings: Settings, ceilings: Ceilings) -> int:
    """The timed batch, halved until the fp64 reference fits memory and `settings.parity_budget_s`.

    So does eager at the case's own precision, which takes longer where the device only emulates it.
    """
    rates = ceilings.matmul_flops_per_s
    rate = min(rates["fp64"], rates.get(case.precision, inf)) * _REFERENCE_EFFICIENCY
    available = memory.free_bytes(case.device) * _USABLE_MEMORY
    batch_size = case.batch_size
    while batch_size > 1:
        flops = cost.cost(case.model, case.mode, case.precision, batch_size, case.image_size).flops
        seconds = flops * settings.parity_steps * CHECKS / rate
        needed = cost.activation_bytes(case.model, batch_size, case.image_size, _FP64_BYTES)
        needed *= _TRANSIENT if case.mode == "train" else _INFERENCE_SHARE  # type: ignore[assignment]
        if seconds <= settings.parity_budget_s and needed <= available:
            break
        batch_size //= 2
    return batch_size


def _note(timed: int, checked: int) -> str:
    return (
        f"checked at batch {checked}: the fp64 reference at batch {timed} does not fit the memory or time it may take"
    )
