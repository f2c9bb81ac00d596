"""Facts about the machine and the software that a run was made with. Worker side.

Two calls on one machine give the same facts: no clock, temperature, pid or host name is among them, and nothing that
names directories or users.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pynvml
import torch

from bench.machine.nvml import gpu_uuid, opened
from bench.machine.revision import UNKNOWN, revision
from bench.types import Device, Environment

GIB = 2**30

# Environment variables that change what is measured, by the start of their name.
VARIABLES = (
    "ATEN_",
    "CUBLAS",
    "CUDA_",
    "CUDNN_",
    "DNNL_",
    "GOMP_",
    "KMP_",
    "LD_PRELOAD",
    "MALLOC_",
    "MKL_",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_",
    "ONEDNN_",
    "PYTORCH_",
    "TORCH_",
    "TORCHDYNAMO_",
    "TORCHINDUCTOR_",
    "TRITON_",
)

# Instruction sets that decide the speed of products on CPU, as /proc/cpuinfo names them.
X86_FEATURES = "avx2 avx_vnni avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_bf16 amx_fp16"
ARM_FEATURES = "asimd bf16 i8mm sve sve2 svebf16"


def collect(device: Device, nvml: ModuleType = pynvml, *, weights: str = "") -> Environment:
    """Facts for a run on `device` with these weights. Raises ValueError for `cuda` without CUDA."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds no CUDA device here; use --device cpu")
    hardware = _gpu(nvml) if device == "cuda" else {"device": _cpu_name()}
    code = revision()
    software = _software(code.name)
    facts = {"device_kind": device} | hardware | _machine() | software | _weights(weights) | _variables(os.environ)
    return Environment(facts=facts, sources=code.digests, changed_sources=code.changed)


def cpp_compiler() -> str | None:
    """The C++ compiler that Inductor would call (CXX, else g++), or None where there is none."""
    return shutil.which(shlex.split(os.environ.get("CXX") or "g++")[0])


def _gpu(nvml: ModuleType) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "gpu_memory": f"{properties.total_memory / GIB:.1f} GiB",
    } | _driver(nvml, gpu_uuid())


def _driver(nvml: ModuleType, uuid: str) -> dict[str, str]:
    """The facts that only NVML knows; one that it does not tell is `unknown`."""
    switch = ("off", "on")
    facts = dict.fromkeys(("driver", "power_limit", "persistence_mode", "ecc"), UNKNOWN)
    with suppress(nvml.NVMLError), opened(uuid, nvml) as handle:
        facts["driver"] = str(nvml.nvmlSystemGetDriverVersion())
        with suppress(nvml.NVMLError):
            facts["power_limit"] = f"{nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3:.0f} W"
        with suppress(nvml.NVMLError):
            facts["persistence_mode"] = switch[nvml.nvmlDeviceGetPersistenceMode(handle)]
        with suppress(nvml.NVMLError):
            facts["ecc"] = switch[nvml.nvmlDeviceGetCurrentEccMode(handle)]
    return facts


def _machine() -> dict[str, str]:
    return {
        "cpu": _cpu_name(),
        "cpu_features": _cpu_features(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": str(len(os.sched_getaffinity(0))),
        "torch_threads": str(torch.get_num_threads()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.1f} GiB",
        "os": _os_name(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _software(revision: str) -> dict[str, str]:
    return {
        "resbench": _version("resbench"),
        "revision": revision,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a plain string: the parent must not need torch to read it
        "cuda": torch.version.cuda or "none",
        "cudnn": str(torch.backends.cudnn.version() or "none"),  # type: ignore[no-untyped-call]
        "triton": _version("triton"),
        "torchvision": _version("torchvision"),
        "numpy": _version("numpy"),
        "cpp_compiler": _compiler_version(),
    }


def _weights(source: str) -> dict[str, str]:
    """The first digits of the SHA-256 of a file of weights: its name stays where its content may not."""
    if not Path(source).is_file():
        return {}
    with Path(source).open("rb") as file:
        return {"weights_sha256": hashlib.file_digest(file, "sha256").hexdigest()[:12]}


def _variables(variables: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """Values of VARIABLES, but for any that holds a path. LD_PRELOAD keeps file names: they tell the allocator."""
    facts = {}
    for name, value in sorted(variables.items()):
        if not name.startswith(VARIABLES):
            continue
        if name == "LD_PRELOAD":
            facts[f"env:{name}"] = " ".join(Path(library).name for library in re.split(r"[\s:]+", value) if library)
        elif not re.search(r"[/\\~]", value):
            facts[f"env:{name}"] = value
    return facts


def _cpuinfo(*fields: str) -> str:
    """The value of the first of these fields that /proc/cpuinfo has, or an empty string."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in fields:
                return value.strip()
    return ""


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_features() -> str:
    flags = set(_cpuinfo("flags", "Features").split())
    return " ".join(name for name in f"{X86_FEATURES} {ARM_FEATURES}".split() if name in flags) or "none"


def _os_name() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", UNKNOWN)
    return UNKNOWN


def _version(distribution: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(distribution)
    return UNKNOWN


def _compiler_version() -> str:
    compiler = cpp_compiler()
    if compiler is None:
        return "none"
    lines = _output(compiler, "--version").splitlines()
    return lines[0] if lines else UNKNOWN


def _output(*command: str) -> str:
    """Standard output of a command, empty where it fails."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, check=True, timeout=30)  # noqa: S603
        return done.stdout.decode(errors="replace")  # whatever the locale is
    return ""
