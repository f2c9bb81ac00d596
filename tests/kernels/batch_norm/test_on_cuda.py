"""What is known without a GPU of the route that kernels take on one, `torch.library.triton_op` under torch.compile."""

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from kernels.kernel import Kernel
from kernels.table import KERNELS
from tests.support.repository import ROOT

STATISTICS = {"_partial_statistics": ["partials_ptr"]}
APPLY, MASKED, POOL = (
    {kernel: [*more, "statistics_ptr", "y_ptr"]}
    for kernel, more in (("_apply", []), ("_apply", ["mask_ptr"]), ("_pool", ["places_ptr"]))
)
OF_NORM, OF_Z = ["dbias_ptr", "dweight_ptr", "dx_ptr"], ["dz_ptr", "z_dbias_ptr", "z_dweight_ptr"]
TRAINED = {"_reduce": ["sums_ptr"], "_gradient": OF_NORM}
# By form and mode, the kernels of the forward and of the backward graph, each with what it writes.
GRAPHS: dict[str, list[dict[str, list[str]]]] = {
    "bn, training": [STATISTICS | APPLY, TRAINED],
    "bn, evaluation": [APPLY, {"_reduce": ["dx_ptr", "sums_ptr"]}],
    "bn+relu, training": [STATISTICS | APPLY, TRAINED],
    "bn+relu, evaluation": [APPLY, {"_reduce": ["dx_ptr", "sums_ptr"]}],
    "bn+residual+relu, training": [STATISTICS | MASKED, TRAINED | {"_reduce": ["dz_ptr", "sums_ptr"]}],
    "bn+residual+relu, evaluation": [MASKED, {"_reduce": ["dx_ptr", "dz_ptr", "sums_ptr"]}],
    "dual, training": [STATISTICS | MASKED, TRAINED | {"_gradient": OF_NORM + OF_Z}],
    "dual, evaluation": [MASKED, {"_reduce": ["dx_ptr", "dz_ptr", "sums_ptr"]}],
    "stem, training": [STATISTICS | POOL, TRAINED],
    "stem, evaluation": [POOL, {"_reduce": ["dx_ptr", "sums_ptr"]}],
    "running statistics": [{"_update_running": ["num_batches_tracked_ptr", "running_mean_ptr", "running_var_ptr"]}],
}


forms = pytest.mark.parametrize(
    ("kernel", "mode"),
    [(kernel, mode) for kernel in KERNELS for mode in ("training", "evaluation")],
    ids=lambda value: getattr(value, "name", value),
)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that has no interpreter, with the kernels' package at hand."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    return subprocess.run(  # noqa: S603
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@cache
def printed_by(program: str) -> dict[str, Any]:
    done = python(str(ROOT / "tests" / "support" / program))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", GRAPHS)
def test_the_compiler_sees_kernels_and_what_they_write(name: str) -> None:
    """An argument that it took for written by mistake would be copied first; one it missed would be read too early."""
    assert printed_by("traced_for_cuda.py")["graphs"][name] == GRAPHS[name]


def test_every_form_is_traced() -> None:
    assert printed_by("traced_for_cuda.py")["graphs"].keys() == GRAPHS.keys()


@pytest.mark.exhaustive
@forms
def test_torch_compile_compiles_what_the_audit_does(kernel: Kernel, mode: str) -> None:
    """The same types, constants, multiples of 16 and warps, so that the audit holds for both."""
    found = printed_by("compiled_for_cuda.py")[f"{kernel.name}, {mode}"]
    assert [one for graph in found["alone"] for one in graph["compiled"]] == found["called"]


@pytest.mark.exhaustive
@forms
def test_torch_compile_adds_nothing(kernel: Kernel, mode: str) -> None:
    """No copy and no fill beside our kernels; in evaluation the partial sums are added up by torch."""
    forward, backward = printed_by("compiled_for_cuda.py")[f"{kernel.name}, {mode}"]["alone"]
    assert forward["made"] == []
    assert backward["made"] == ([] if mode == "training" else [1])


@pytest.mark.exhaustive
@forms
def test_what_several_kernels_read_is_computed_once(kernel: Kernel, mode: str) -> None:
    """x, z, then what is made of y; dy, then what is made of dx and dz, and in evaluation the sums."""
    forward, backward = printed_by("compiled_for_cuda.py")[f"{kernel.name}, {mode}"]["between"]
    operands = 2 if kernel.second else 1
    assert sum(forward["made"]) == operands + 1
    assert sum(backward["made"]) == 1 + operands + (0 if mode == "training" else 1)


def test_cpu_tensors_are_refused_where_there_is_no_interpreter() -> None:
    assert printed_by("traced_for_cuda.py")["refused"] == [
        f"{kernel.name}: Triton kernels cannot run on cpu tensors here: without a CUDA device they need Triton's "
        "interpreter, which has to be chosen before Triton is imported; set TRITON_INTERPRET=1 in the environment"
        for kernel in KERNELS
    ]
