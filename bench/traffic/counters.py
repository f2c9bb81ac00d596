"""The bytes that a GPU's own counters see in a step, read by NVIDIA Nsight Compute (`ncu`). Imports no torch.

`ncu` runs `bench.traffic.profiled` for one scheme and prints, for each kernel of its last step, the bytes that passed
between memory and caches. Whatever prevents that is told in a sentence and is no failure: the counts stand without it.
"""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import msgspec

from bench.traffic.schemes import scheme_of
from bench.traffic.types import Request, Seen
from bench.workers.child import announce
from bench.workers.errors import WorkerError
from bench.workers.parent import Terms
from resnet.paths import PATHS

TIMEOUT_S = 600.0  # of a scheme
METRICS = ("dram__bytes_read.sum", "dram__bytes_write.sum")
UNIT = "byte"
# Clocks and caches as they are: a flush before each kernel would hide what caches hold between two of them.
OPTIONS = (
    "--csv", "--page", "raw", "--print-units", "base", "--target-processes", "all", "--profile-from-start", "off",
    "--cache-control", "none", "--clock-control", "none", "--metrics", ",".join(METRICS),
)  # fmt: skip

NO_TOOL = "there is no `ncu` on PATH: install NVIDIA Nsight Compute"
NO_RIGHTS = (
    "the driver lets only administrators read them (ERR_NVGPUCTRPERM): run as root, or load the driver with the option "
    "NVreg_RestrictProfilingToAdminUsers=0"
)
_REFUSED = "ERR_NVGPUCTRPERM"
_ERROR = "==ERROR== "
_APPLICATION_ERROR = "The application returned"  # what ncu says where the error is not its own


def read(request: Request, on_scheme: Callable[[str], None]) -> tuple[tuple[Seen, ...], tuple[str, ...]]:
    """The counts of every scheme that some path runs, and a sentence for each reason why others have none."""
    ncu = shutil.which("ncu")
    if ncu is None:
        return (), (f"no counters: {NO_TOOL}",)
    runnable = {scheme_of(path.name, request.mode) for path in PATHS if request.mode in path.modes}
    seen: list[Seen] = []
    missing: dict[str, list[str]] = {}  # schemes by reason
    for scheme in (name for name in request.schemes if name in runnable):
        on_scheme(scheme)
        result = _isolated(ncu, replace(request, schemes=(scheme,)))
        if result == NO_RIGHTS:
            return (), (f"no counters: {NO_RIGHTS}",)
        if isinstance(result, Seen):
            seen.append(result)
        else:
            missing.setdefault(result, []).append(scheme)
    return tuple(seen), tuple(f"no counters of {', '.join(schemes)}: {reason}" for reason, schemes in missing.items())


def _isolated(ncu: str, request: Request) -> Seen | str:
    """Count in a worker: when it ends, so does all that `ncu` has started."""
    try:
        return Terms(timeout_s=TIMEOUT_S).call(count, ncu, request)
    except WorkerError as error:
        return str(error)


def count(ncu: str, request: Request) -> Seen | str:
    """The sums over the kernels of a step of the request's one scheme, or the reason why there are none."""
    announce("profiling")
    child = [sys.executable, "-m", "bench.traffic.profiled", msgspec.json.encode(request).decode()]
    plain = os.environ | {"LC_ALL": "C"}  # it decides which characters separate thousands and decimals
    ran = subprocess.run(  # noqa: S603 - the tool named by PATH
        [ncu, *OPTIONS, *child], env=plain, capture_output=True, text=True, errors="replace", check=False
    )
    lines = [line for line in f"{ran.stdout}\n{ran.stderr}".splitlines() if line.strip()]
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    if any(_REFUSED in error for error in errors):
        return NO_RIGHTS
    if errors or ran.returncode:
        own_errors = " ".join(error for error in errors if not error.startswith(_APPLICATION_ERROR))
        return own_errors or (lines[-1] if lines else f"ncu ended with exit code {ran.returncode}")
    return parse(request.schemes[0], ran.stdout)


def parse(scheme: str, text: str) -> Seen | str:
    """The sums of what `ncu` prints: among other lines, one of names, one of units, and one for each kernel."""
    table = (line for line in text.splitlines() if line.startswith('"'))
    units, *kernels = list(csv.DictReader(table, restval="")) or [{}]
    for metric in METRICS:
        if units.get(metric) != UNIT:
            return f"cannot understand what ncu printed: {metric} is in {units.get(metric, '')!r}, not in {UNIT!r}"
    if not kernels:
        return "ncu saw no kernel"
    try:
        read_bytes, written_bytes = (sum(_number(kernel[metric]) for kernel in kernels) for metric in METRICS)
    except ValueError as error:
        return f"cannot understand what ncu printed: {error}"
    return Seen(scheme=scheme, read_bytes=read_bytes, written_bytes=written_bytes)


def _number(text: str) -> int:
    """E.g. 1,048,576."""
    return round(float(text.replace(",", "")))
