"""Peak memory of a step and its breakdown, in a loop of its own after timing. Worker side.

What is where: parameters, gradients, optimizer state and the activations kept for backward are counted tensor by
tensor (each storage once); the workspace is what remains of the peak. The parts do not all live at the moment of the
peak (gradients grow while activations are freed), so the workspace is a lower bound and never negative.

A replayed CUDA graph writes to a private pool that the allocator calls free between replays: activations and
temporaries of a captured step lie in that pool (`graph_pool_bytes`), all of which counts as allocated here.
"""

import gc
import resource
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bench.machine.nvml import gpu_uuid, process_bytes
from bench.measure.malloc import HAND_BACK, glibc, set_malloc
from bench.measure.out_of_memory import is_out_of_memory
from bench.types import Device, Memory

STEPS = 3
STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # man 5 proc: set VmHWM to the resident set of this moment


class Stepper(Protocol):
    """The program that is measured: `resnet.program.Program`."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def optimizer(self) -> torch.optim.Optimizer | None: ...
    def step(self, images: Tensor, labels: Tensor) -> object: ...
    def forward(self, images: Tensor, labels: Tensor) -> Tensor: ...


class SavedStorage(NamedTuple):
    """One storage that autograd keeps for backward."""

    dtype: torch.dtype
    nbytes: int


def baseline() -> int:
    """Resident set of this process in bytes. Take it before the model is built."""
    return _proc_bytes(STATUS, "VmRSS") or 0


def free_bytes(device: Device) -> int:
    """Memory that can still be had on a device.

    Raises:
        RuntimeError: the kernel does not tell.
    """
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    available = _proc_bytes(MEMINFO, "MemAvailable")
    if available is None:
        raise RuntimeError(f"{MEMINFO} does not tell MemAvailable")
    return available


def measure(program: Stepper, images: Tensor, labels: Tensor, *, baseline_bytes: int | None = None) -> Memory:
    """Run a few steps and measure what they take.

    On CPU the peak is the resident set above `baseline_bytes` (from `baseline`), None without one; from now on the
    process hands freed blocks back to the kernel at once. Parameters and buffers change as by any step; the forward
    pass that counts activations leaves gradients and optimizer state alone.

    Args:
        program: in steady state, that is after its first call.
        images: [N, C, H, W] as placed by the program.
        labels: [N] int64.
        baseline_bytes: CPU only.
    """
    if images.device.type == "cuda":
        return _measure_cuda(program, images, labels)
    return _measure_cpu(program, images, labels, baseline_bytes)


def saved_storages(forward: Callable[[], Tensor], model: nn.Module) -> list[SavedStorage]:
    """Each storage that autograd keeps for the backward pass of `forward`, once; parameters and buffers left out.

    The input batch counts where a layer keeps it. The graph is freed on return.
    """
    own = {_key(tensor) for tensor in _state(model)}
    kept: dict[int, tuple[torch.UntypedStorage, torch.dtype]] = {}  # holding the storage keeps its key from reuse

    def pack(tensor: Tensor) -> Tensor:
        kept[_key(tensor)] = (tensor.untyped_storage(), tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return [SavedStorage(dtype, storage.nbytes()) for key, (storage, dtype) in kept.items() if key not in own]


def graph_pool_bytes(segments: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Size of the private pools among the allocator's segments (torch.cuda.memory_snapshot), and their unused part."""
    private = [segment for segment in segments if tuple(segment["segment_pool_id"]) != (0, 0)]
    total = sum(segment["total_size"] for segment in private)
    return total, total - sum(segment["allocated_size"] for segment in private)


def _measure_cuda(program: Stepper, images: Tensor, labels: Tensor) -> Memory:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what parity left behind is not this step's
    torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        program.step(images, labels)
    torch.cuda.synchronize()
    reserved = torch.cuda.max_memory_reserved()
    pools, unused = graph_pool_bytes(torch.cuda.memory_snapshot())  # type: ignore[no-untyped-call]
    process = process_bytes(gpu_uuid())
    peak = torch.cuda.max_memory_allocated() + unused  # the unused part of a pool is what a replay writes to
    return _memory(
        program,
        footprint=peak,
        activation_bytes=_activation_bytes(program, images, labels),
        peak_allocated_bytes=peak,
        peak_reserved_bytes=reserved,
        process_bytes=process,
        graph_pool_bytes=pools,
    )


def _measure_cpu(program: Stepper, images: Tensor, labels: Tensor, baseline_bytes: int | None) -> Memory:
    set_malloc(HAND_BACK)
    with ThreadPoolExecutor(1) as thread:  # a new one has a heap of its own: no freed blocks to go on with
        peak = thread.submit(_peak_resident, program, images, labels).result()
    above = None if baseline_bytes is None else max(0, peak - baseline_bytes)
    return _memory(
        program,
        footprint=above,
        activation_bytes=_activation_bytes(program, images, labels),
        peak_allocated_bytes=above,
        process_bytes=peak,
    )


def _peak_resident(program: Stepper, images: Tensor, labels: Tensor) -> int:
    gc.collect()
    glibc("malloc_trim", 0)  # so that what parity used is not in the resident set
    with suppress(OSError):  # some sandboxes forbid it: then the peak is that of the whole process life
        CLEAR_REFS.write_text(RESET_PEAK, encoding="ascii")
    for _ in range(STEPS):
        program.step(images, labels)
    return _proc_bytes(STATUS, "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _memory(program: Stepper, *, footprint: int | None, activation_bytes: int | None, **measured: int | None) -> Memory:
    """The breakdown: `footprint` is all that the step takes, the workspace what no other part explains."""
    parameters = list(program.model.parameters())
    parameter_bytes = _bytes(_state(program.model))
    gradient_bytes = _bytes(parameter.grad for parameter in parameters if parameter.grad is not None)
    optimizer_bytes = _bytes(_optimizer_state(program.optimizer))
    known = parameter_bytes + gradient_bytes + optimizer_bytes + (activation_bytes or 0)
    knowable = footprint is not None and activation_bytes is not None
    return Memory(
        parameter_bytes=parameter_bytes,
        gradient_bytes=gradient_bytes,
        optimizer_bytes=optimizer_bytes,
        activation_bytes=activation_bytes,
        workspace_bytes=max(0, footprint - known) if footprint is not None and knowable else None,
        **measured,
    )


def _activation_bytes(program: Stepper, images: Tensor, labels: Tensor) -> int | None:
    """Bytes kept for backward; None where the forward pass does not fit beside a large CUDA graph's pool."""
    if program.optimizer is None:
        return 0
    try:
        return sum(saved.nbytes for saved in saved_storages(lambda: program.forward(images, labels), program.model))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _optimizer_state(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    slots = optimizer.state.values() if optimizer is not None else ()
    return [value for slot in slots for value in slot.values() if isinstance(value, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({_key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _proc_bytes(file: Path, field: str) -> int | None:
    """A field of a `name: value kB` file of the kernel; None where there is none."""
    with suppress(OSError):
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
    return None
