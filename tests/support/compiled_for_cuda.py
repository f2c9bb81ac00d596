"""What torch.compile makes of every form on a GPU, without one: a program of its own, since Triton chooses at import.

    python compiled_for_cuda.py

Inductor writes its code, and Triton compiles the kernels of it for sm_90, as they are; nothing runs. Tensors of the CPU
stand for a GPU's. Prints a JSON object: what `found` returns, by form and mode.
"""

import os
import sys

os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

from tests.support.traced_for_cuda import ARCH, SHAPE, pretend  # before anything imports Triton

# isort: split
import torch
import torch._inductor.graph
from torch import Tensor
from torch._dynamo.device_interface import CpuInterface
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import PyCodeCache
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.hints import DeviceProperties

from bench.kernels.operands import launches
from bench.kernels.types import Op
from kernels.audit.compilation import of_call
from kernels.kernel import Kernel, Operands, make_operands
from kernels.launch.runtime import Call
from kernels.table import KERNELS

GPU = DeviceProperties(type="cuda", index=0, multi_processor_count=132, cc=90, major=9, warp_size=32)


@dataclass(kw_only=True)
class Graph:
    """A graph that was compiled."""

    compiled: list[dict[str, Any]] = field(
        default_factory=list
    )  # of our kernels, each as kernels.audit.compilation has it
    made: list[int] = field(default_factory=list)  # by each launch of a kernel of Inductor's own, the tensors written


class NotLaunched:
    """In place of a compiled kernel."""

    def run(self, *arguments: object, **options: object) -> None:
        pass


def pretend_to_inductor() -> None:
    """That CPU tensors are as aligned as a GPU's, and that there is one."""
    vars(torch._inductor.graph)["should_assume_input_aligned"] = lambda example: True  # noqa: ARG005
    vars(triton_helpers)["set_driver_to_gpu"] = lambda: None
    for owner, name, value in (
        (CpuInterface, "raise_if_triton_unavailable", lambda device=None: None),  # noqa: ARG005
        (DeviceProperties, "create", lambda device: GPU),  # noqa: ARG005
    ):
        setattr(owner, name, staticmethod(value))


def compilation(tuner: Any, name: str) -> dict[str, Any]:  # noqa: ANN401 - a CachingAutotuner of torch
    """What Inductor hands to Triton, in the words of `kernels.audit.compilation.Compilation`."""
    meta = tuner.triton_meta
    (config,), (attributes,) = tuner.configs, meta["configs"]
    names = list(meta["signature"])
    divisible = [names[index] for (index,), given in attributes.items() if ["tt.divisibility", 16] in given]
    types = {argument: None if kind == "constexpr" else kind for argument, kind in meta["signature"].items()}
    return described(name, types, meta["constants"], divisible, config.num_warps)


def described(
    kernel: str, types: dict[str, str | None], constants: dict[str, Any], divisible: list[str], num_warps: int
) -> dict[str, Any]:
    values = {argument: constants.get(argument) if kind is None else kind for argument, kind in types.items()}
    return {"kernel": kernel, "arguments": values, "divisible": sorted(divisible), "num_warps": num_warps}


def graphs_of(function: Callable[[], object]) -> list[Graph]:
    """All graphs that are compiled while a function runs."""
    found: list[Graph] = []
    codegen = GraphLowering.codegen

    def begin(self: GraphLowering) -> Any:  # noqa: ANN401 - of torch
        found.append(Graph())
        return codegen(self)

    def ours(self: AsyncCompile, name: str, source: str, **_: str) -> NotLaunched:  # noqa: ARG001
        tuner = getattr(PyCodeCache.load(source), name)
        (config,) = tuner.configs
        tuner._precompile_config(config)
        found[-1].compiled.append(compilation(tuner, name))
        return NotLaunched()

    def theirs(self: AsyncCompile, arguments: list[str], source: str) -> Callable[..., None]:  # noqa: ARG001
        graph, written = found[-1], sum("const" not in argument for argument in arguments)
        return lambda *_: graph.made.append(written)

    torch._dynamo.reset()
    with (
        patch.object(GraphLowering, "codegen", begin),
        patch.object(AsyncCompile, "triton", ours),
        patch.object(AsyncCompile, "cpp_pybinding", theirs),
    ):
        function()
    return found


def step(kernel: Kernel, *, training: bool, computed: bool) -> None:
    """Forward and backward; between other operations, which compute what the op takes, where that is asked for."""

    def run(operands: Operands) -> Tensor:
        if not computed:
            return kernel.run(operands, training)
        z = None if operands.z is None else operands.z.sin()
        return kernel.run(operands._replace(x=operands.x.sin(), z=z), training).sin()

    operands = make_operands(kernel, SHAPE, torch.bfloat16, "cpu")
    y = torch.compile(run, fullgraph=True)(operands)
    torch.autograd.grad(y, operands.differentiable(), torch.ones_like(y))


def called(kernel: Kernel, *, training: bool) -> list[dict[str, Any]]:
    """What is compiled where the op is called as it is, and what the audit has compiled."""
    op = Op(form=kernel.name, shape=SHAPE, dtype="bf16", mode="train" if training else "eval")
    return [as_compiled(launch.call) for direction in launches(op, ARCH).values() for launch in direction]


def as_compiled(call: Call) -> dict[str, Any]:
    one = of_call(call, ARCH)
    types = {name: None if kind == "constexpr" else kind for name, kind in one.signature}
    return described(call.kernel.__name__, types, dict(one.constants), list(one.divisible), one.num_warps)


def found(kernel: Kernel, *, training: bool) -> dict[str, Any]:
    """What a form becomes alone, between other operations, and where the op is called as it is."""
    compiled = {
        name: [asdict(graph) for graph in graphs_of(partial(step, kernel, training=training, computed=computed))]
        for name, computed in (("alone", False), ("between", True))
    }
    return {**compiled, "called": called(kernel, training=training)}


def main() -> None:
    pretend()
    pretend_to_inductor()
    forms = {
        f"{kernel.name}, {mode}": found(kernel, training=mode == "training")
        for kernel in KERNELS
        for mode in ("training", "evaluation")
    }
    json.dump(forms, sys.stdout)


if __name__ == "__main__":
    main()
