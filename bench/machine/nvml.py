"""NVML's facts about GPUs: their names, the processes on them and the memory of this one. Worker side.

Every function takes the NVML binding as an argument, so that tests run against a fake one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import pynvml
import torch


def gpu_uuid(device_index: int | None = None) -> str:
    """NVML's name of a CUDA device: indices differ between the two under CUDA_VISIBLE_DEVICES. Default: current."""
    index = torch.cuda.current_device() if device_index is None else device_index
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


@contextmanager
def opened(uuid: str, nvml: ModuleType = pynvml) -> Iterator[Any]:
    """NVML's handle of a device. Raises NVMLError where there is no driver or no such device."""
    nvml.nvmlInit()
    try:
        yield nvml.nvmlDeviceGetHandleByUUID(uuid)
    finally:
        nvml.nvmlShutdown()


def snapshot(nvml: ModuleType = pynvml) -> frozenset[int]:
    """Pids with a CUDA context on any GPU of this machine, as NVML numbers them; empty without NVML.

    Take it before this process touches CUDA: it needs no CUDA context, and covers every GPU for that reason.
    """
    pids: set[int] = set()
    with suppress(nvml.NVMLError):
        nvml.nvmlInit()
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                pids |= pids_on(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
        finally:
            nvml.nvmlShutdown()
    return frozenset(pids)


def process_bytes(uuid: str, nvml: ModuleType = pynvml) -> int | None:
    """Bytes of this process on a device: context, modules and all allocators.

    None where NVML does not tell, or numbers processes in another pid namespace (containers).
    """
    with suppress(nvml.NVMLError), opened(uuid, nvml) as handle:
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
    return None


def pids_on(nvml: ModuleType, handle: object) -> set[int]:
    return {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
