"""Trace every form as torch.compile does on a GPU, without one: a program of its own, since Triton chooses at import.

    python traced_for_cuda.py

Prints a JSON object. First what each form says to tensors of the CPU where there is neither a GPU nor an interpreter;
then by form and mode, for each graph (forward, backward) its kernels, each with the arguments that torch's analysis of
the kernel's code found written. A driver that only names the target stands in for CUDA's; nothing runs.
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "0"

import json
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import kernels.launch.runtime  # before anything imports Triton

# isort: split
import torch
import triton
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from triton.backends.compiler import GPUTarget

import kernels.batch_norm.act
import kernels.batch_norm.backward
import kernels.batch_norm.pool
import kernels.batch_norm.statistics
import kernels.launch.passes
from kernels.batch_norm.statistics import update_running_statistics
from kernels.kernel import Kernel, make_operands
from kernels.table import KERNELS

Backend = Callable[..., Any]
MODULES = (kernels.batch_norm.statistics, kernels.batch_norm.act, kernels.batch_norm.backward, kernels.batch_norm.pool)
ARCH = "sm_90"
SHAPE = (8, 64, 28, 28)


class TargetOnly:
    """A driver without a device."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


def pretend() -> None:
    """CPU tensors stand for a GPU's."""
    triton.runtime.driver.set_active(TargetOnly())
    vars(kernels.launch.passes)["architecture"] = lambda: kernels.launch.runtime.ARCHITECTURES[ARCH]
    for module in MODULES:
        vars(module)["require_runnable"] = lambda device: None  # noqa: ARG005


def launches(graph: torch.fx.Graph) -> dict[str, list[str]]:
    nodes = [node.kwargs for node in graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    return {
        cast("Any", kernel_side_table.get_kernel(node["kernel_idx"])).fn.__name__: sorted(node["tensors_to_clone"])
        for node in nodes
    }


def like(node: torch.fx.Node | None) -> Tensor | None:
    """Zeros of the shape and strides of what a node of a graph makes."""
    if node is None:
        return None
    made = node.meta["val"]
    return torch.empty_strided(made.shape, made.stride(), dtype=made.dtype).zero_()


def traced(function: Callable[[Backend], None]) -> list[dict[str, list[str]]]:
    """The launches of every graph that a function compiles while it runs."""
    found: list[dict[str, list[str]]] = []

    def compiler(module: torch.fx.GraphModule, inputs: object) -> Callable[[object], list[Tensor | None]]:  # noqa: ARG001
        found.append(launches(module.graph))
        (returned,) = next(node for node in module.graph.nodes if node.op == "output").args

        def zeros(arguments: object) -> list[Tensor | None]:  # noqa: ARG001
            return [like(node) for node in returned]

        zeros._boxed_call = True  # type: ignore[attr-defined]
        return zeros

    torch._dynamo.reset()
    function(aot_autograd(fw_compiler=compiler, bw_compiler=compiler))
    return found


def step(kernel: Kernel, training: bool, backend: Backend) -> None:
    operands = make_operands(kernel, SHAPE, torch.bfloat16, "cpu")
    y = torch.compile(kernel.run, backend=backend, fullgraph=True)(operands, training)
    torch.autograd.grad(y, operands.differentiable(), torch.ones_like(y))


def update(backend: Backend) -> None:
    mean, var, batches, statistics = torch.zeros(64), torch.ones(64), torch.tensor(0), torch.ones(2, 64)
    compiled: Callable[..., None] = torch.compile(update_running_statistics, backend=backend, fullgraph=True)
    compiled(mean, var, batches, statistics, 0.1, 6272)


def refused() -> list[str]:
    """What each form says as it is."""
    said = []
    for kernel in KERNELS:
        try:
            kernel.run(make_operands(kernel, (2, 8, 4, 4), torch.float32, "cpu"), True)
        except RuntimeError as error:
            said.append(f"{kernel.name}: {error}")
    return said


def main() -> None:
    said = refused()
    pretend()
    graphs = {
        f"{kernel.name}, {mode}": traced(partial(step, kernel, mode == "training"))
        for kernel in KERNELS
        for mode in ("training", "evaluation")
    }
    json.dump({"refused": said, "graphs": graphs | {"running statistics": traced(update)}}, sys.stdout)


if __name__ == "__main__":
    main()
