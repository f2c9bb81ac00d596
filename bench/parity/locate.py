"""Finds the first layer that diverges, where the tensors of a failed check do not tell."""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.measure.inputs import make_program
from bench.parity import errors, reference, tolerances
from bench.types import Case, Settings
from resnet.program import Program

_LAYER = re.compile(r"maxpool|layer\d+\.\d+|fc")  # named alike in the plain and in the folded network


def first_diverging_layer(case: Case, settings: Settings, batch_size: int) -> str:
    """The first layer whose output is wrong in a program of the case made anew; empty if there is none.

    Layers are the stem, the residual blocks and the classifier, those that the program calls; an output is wrong as a
    tensor of a check is.
    """
    images, labels = next(reference.inputs(case, settings, batch_size, check=0))
    exact, eager, actual = (
        _outputs(program, images, labels)
        for program in (
            reference.eager(case, settings, "fp64"),
            reference.eager(case, settings, case.precision),
            make_program(case, settings),
        )
    )
    values = tolerances.last_stage_values(case, batch_size)
    for name, ref in exact.items():
        limit = tolerances.tolerance("output@1", errors.relative_error(eager.get(name), ref), case, values)
        if name in actual and not errors.relative_error(actual[name], ref) <= limit:
            return name
    return ""


def _outputs(program: Program, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The output of each layer in the first step, in execution order, also of a compiled or captured program."""
    outputs: dict[str, Tensor] = {}

    def observe(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor | tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            own = output if isinstance(output, Tensor) else output[0]  # then comes what the next layer starts from
            outputs[name] = own.detach().clone()

        return hook

    torch._dynamo.reset()
    for name, module in program.model.named_modules():
        if _LAYER.fullmatch(name):
            module.register_forward_hook(observe(name))
    program.step(program.place(images), labels)
    return outputs
