"""The tensors that a program computes in some steps, and their errors against those of fp64. Worker side."""

from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from bench.measure.inputs import make_batch
from bench.parity.errors import relative_error, scale_error
from bench.types import Case
from resnet.program import Program

Batches = Iterator[tuple[Tensor, Tensor]]  # images [N, C, H, W] and labels [N]


def trajectory(program: Program, state: Mapping[str, Tensor], batches: Batches) -> Iterator[tuple[str, Tensor | None]]:
    """Run one step a batch from `state` and yield what it produced, in execution order, as (name, tensor).

    Names are those of `TensorError.tensor`. A tensor is valid until the next one is asked for; None stands for a
    gradient that is not there. Parameters and buffers come as their difference to `state`, in fp64.
    """
    train = program.mode == "train"
    if train:
        program.load(state)
    number = 0
    for number, (images, labels) in enumerate(batches, start=1):
        logits, loss = program.step(program.place(images), labels)
        if train and number == 1:
            yield from _moved(program, state, "buffer", number)
        yield f"output@{number}", logits
        if loss is not None:
            yield f"loss@{number}", loss
        if train and number == 1:
            for name, gradient in reversed(program.gradients().items()):
                yield f"grad:{name}@{number}", gradient
            yield from _moved(program, state, "param", number)
    if train and number > 1:
        yield from _moved(program, state, "buffer", number)
        yield from _moved(program, state, "param", number)


def _moved(program: Program, state: Mapping[str, Tensor], kind: str, number: int) -> Iterator[tuple[str, Tensor]]:
    tensors = program.model.named_parameters() if kind == "param" else program.model.named_buffers()
    for name, tensor in tensors:
        yield f"{kind}:{name}@{number}", tensor.detach().double() - state[name].to(tensor.device).double()


def batches(case: Case, *, seed: int, steps: int) -> Batches:
    """`steps` fresh batches of a case. Another seed, other inputs: no check sees what another has seen."""
    return (make_batch(case, seed * 1000 + step) for step in range(steps))


def save_reference(program: Program, state: Mapping[str, Tensor], inputs: Batches, file: Path) -> None:
    """Write the trajectory of an fp64 program to `file`: name -> fp64 tensor on the CPU."""
    tensors = {name: None if t is None else t.detach().cpu().clone() for name, t in trajectory(program, state, inputs)}
    torch.save(tensors, file)


def errors(program: Program, state: Mapping[str, Tensor], inputs: Batches, reference: Path) -> dict[str, float]:
    """Relative L2 error of each tensor of the program's trajectory against a saved reference, in execution order."""
    expected = torch.load(reference, weights_only=True, mmap=True)
    by_name: dict[str, float] = {}
    for name, out in trajectory(program, state, inputs):
        ref = expected[name]
        by_name[name] = relative_error(out, ref)
        if program.precision == "fp32" and name.startswith("grad:") and ref.dim() > 1:
            by_name[name.replace("grad:", "scale:")] = scale_error(out, ref)
    missing = {name: inf for name in expected if name not in by_name}
    return by_name | missing
