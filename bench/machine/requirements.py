"""Reasons why a case cannot run on this machine: a row for each requirement, a sentence for each. Worker side."""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import nn

from bench.machine.environment import cpp_compiler
from bench.types import Case
from resnet.models.table import network_of
from resnet.paths import Path

AMPERE = (8, 0)  # first with TF32 and bf16 products
FEWEST_VALUES = 4  # of 1, BatchNorm refuses to train; 2 normalise to -1 and 1 whatever they were
INTERPRETED_REASON = (
    "without a CUDA device Triton's interpreter runs the kernels, which shows whether they are right, not how fast"
)


def why_unsupported(case: Case, path: Path) -> str | None:
    """The reason why a case cannot run here, with what it needs, in one sentence; None if it can."""
    for requirement in REQUIREMENTS:
        reason = requirement(case, path)
        if reason is not None:
            return reason
    return None


def _world_size(case: Case, _: Path) -> str | None:
    if case.world_size == 1:
        return None
    return f"world size {case.world_size}: this version runs one process on one device; use world size 1"


def _mode(case: Case, path: Path) -> str | None:
    if case.mode in path.modes:
        return None
    return f"path {path.name} has no {case.mode} mode, only {' and '.join(path.modes)}"


def _cpu_mode(case: Case, path: Path) -> str | None:
    if case.device != "cpu" or path.cpu_modes is None or case.mode in path.cpu_modes:
        return None
    return path.cpu_reason


def _few_values(case: Case, _: Path) -> str | None:
    values = network_of(case.model).last_stage(case.batch_size, case.image_size)
    if case.mode != "train" or case.kind == "max-batch" or values >= FEWEST_VALUES:
        return None
    return (
        f"training needs {FEWEST_VALUES} values a channel in the last stage, or BatchNorm's gradients vanish there, "
        f"and this case has {values}: use larger batches or images"
    )


def _foldable(case: Case, path: Path) -> str | None:
    if not path.fold or network_of(case.model).is_reference:
        return None
    return f"path {path.name} can only fold the reference ResNets, and {case.model} is another network"


def _path_needs_cuda(case: Case, path: Path) -> str | None:
    if case.device == "cuda" or "cuda" not in path.needs:
        return None
    return f"path {path.name} needs a CUDA device, and this case runs on cpu"


def _tf32_needs_cuda(case: Case, _: Path) -> str | None:
    if case.device == "cuda" or case.precision != "tf32":
        return None
    return "tf32 needs a CUDA device of compute capability 8.0 or later, and this case runs on cpu"


def _cuda(case: Case, _: Path) -> str | None:
    if case.device != "cuda" or torch.cuda.is_available():
        return None
    return "torch finds no CUDA device: a CUDA GPU, its driver and a CUDA build of torch are needed"


def _ampere(case: Case, _: Path) -> str | None:
    if case.device != "cuda" or case.precision not in ("tf32", "bf16"):
        return None
    capability = torch.cuda.get_device_capability()
    if capability >= AMPERE:
        return None
    version = ".".join(map(str, capability))
    return f"{case.precision} needs a CUDA device of compute capability 8.0 or later, and this one has {version}"


def _fp16_on_cpu(case: Case, _: Path) -> str | None:
    if case.device != "cpu" or case.precision != "fp16" or fp16_runs_on_cpu():
        return None
    return "fp16 on CPU needs oneDNN kernels for it: AVX512-FP16 or AMX-FP16 instructions, which this CPU lacks"


def _compiler(_: Case, path: Path) -> str | None:
    if "c++ compiler" not in path.needs or cpp_compiler() is not None:
        return None
    return f"path {path.name} needs a C++ compiler: install g++, or name a compiler in the environment variable CXX"


def _triton(case: Case, path: Path) -> str | None:
    if case.device != "cuda" or path.compile_mode is None or find_spec("triton") is not None:
        return None
    return f"path {path.name} needs Triton on a CUDA device: install triton"


def why_untimed(case: Case, path: Path) -> str:
    """Why a case that can run here is checked and not timed; empty if it is timed."""
    if case.device == "cuda" or "cuda for timing" not in path.needs:
        return ""
    return f"{INTERPRETED_REASON}; its step is not captured" if path.cuda_graph else INTERPRETED_REASON


@lru_cache(maxsize=1)
def fp16_runs_on_cpu() -> bool:
    """Whether oneDNN has fp16 kernels for this CPU and autocast reaches them."""
    if not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        return False
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.float16):
            output: torch.Tensor = nn.Conv2d(8, 8, 3)(torch.randn(1, 8, 8, 8))
    except RuntimeError:  # torch's word for "not implemented for Half"
        return False
    return output.dtype == torch.float16


# Asked in this order: what holds on every machine comes before what this machine lacks.
REQUIREMENTS: tuple[Callable[[Case, Path], str | None], ...] = (
    _world_size,
    _mode,
    _cpu_mode,
    _few_values,
    _foldable,
    _path_needs_cuda,
    _tf32_needs_cuda,
    _cuda,
    _ampere,
    _fp16_on_cpu,
    _compiler,
    _triton,
)
