"""How kernels run here: compiled for the GPU, or in Triton's interpreter where torch finds no CUDA device.

Triton decides when a kernel is defined, so this module comes before Triton's first import of a process; whoever comes
too late is told by `require_runnable`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import triton

from kernels import interpreter

INTERPRETED: bool = triton.knobs.runtime.interpret

if INTERPRETED:
    interpreter.mend()


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What launch configurations depend on."""

    name: str
    multiprocessors: int
    registers: int = 65536  # 32-bit, of a multiprocessor
    threads: int = 2048  # resident on a multiprocessor
    shared_bytes: int = 0  # that one program may have


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        # A100, H100 and H200, B200: CUDA C++ Programming Guide, technical specifications per compute capability
        Architecture(name="sm_80", multiprocessors=108, shared_bytes=163 * 1024),
        Architecture(name="sm_90", multiprocessors=132, shared_bytes=227 * 1024),
        Architecture(name="sm_100", multiprocessors=148, shared_bytes=227 * 1024),
        # one program after the other, each operation a call of numpy: few and large, but more than one
        Architecture(name="interpreter", multiprocessors=3),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One launch, as it would have been: see `recorded`."""

    kernel: Any  # triton.JITFunction
    grid: tuple[int, ...]
    arguments: tuple[object, ...]
    options: dict[str, object]  # constexprs by name, and num_warps


_recording: ContextVar[tuple[Architecture, list[Call]] | None] = ContextVar("recording", default=None)


@contextmanager
def recorded(name: str | None = None) -> Iterator[list[Call]]:
    """Inside, kernels are not launched but listed, with the configurations of an architecture, by default this one."""
    calls: list[Call] = []
    token = _recording.set((architecture() if name is None else ARCHITECTURES[name], calls))
    try:
        yield calls
    finally:
        _recording.reset(token)


def architecture() -> Architecture:
    """What kernels run on at the moment."""
    recording = _recording.get()
    if recording is not None:
        return recording[0]
    return ARCHITECTURES["interpreter"] if INTERPRETED else _device_architecture(torch.cuda.current_device())


@lru_cache
def _device_architecture(index: int) -> Architecture:
    properties = torch.cuda.get_device_properties(index)
    name = f"sm_{properties.major}{properties.minor}"
    known = ARCHITECTURES.get(name, ARCHITECTURES["sm_90"])
    return Architecture(name=name, multiprocessors=properties.multi_processor_count, shared_bytes=known.shared_bytes)


class _Recorder:
    """In place of a kernel while launches are recorded."""

    def __init__(self, kernel: Any, calls: list[Call]) -> None:  # noqa: ANN401
        self._kernel, self._calls = kernel, calls

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: object, **options: object) -> None:
            self._calls.append(Call(kernel=self._kernel, grid=grid, arguments=arguments, options=options))

        return launch


def wrap_triton(kernel: Any) -> Any:  # noqa: ANN401 - a JITFunction, or what launches like one
    """What launches a kernel inside an op: traceable for torch.compile on a GPU, interpreted without one."""
    recording = _recording.get()
    if recording is not None:
        return _Recorder(kernel, recording[1])
    return kernel if INTERPRETED else torch.library.wrap_triton(kernel)


def triton_op(name: str, *, mutates_args: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Register a function that launches kernels as an op of torch; it is its own fake implementation.

    torch.compile sees the kernels of a `torch.library.triton_op`. In the interpreter it cannot, and the op is opaque.
    """

    def register(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - a CustomOpDef
        if not INTERPRETED:
            return torch.library.triton_op(name, function, mutates_args=mutates_args)

        def fake(*arguments: object) -> Any:  # noqa: ANN401 - what the op returns
            with nullcontext() if _recording.get() else recorded("interpreter"):  # a list of launches goes on
                return function(*arguments)

        op = torch.library.custom_op(name, function, mutates_args=mutates_args)
        op.register_fake(fake)
        return op

    return register


def require_runnable(device: torch.device) -> None:
    """Refuse what Triton would refuse with a traceback.

    Raises:
        RuntimeError: kernels cannot run on tensors of this device, and what to do.
    """
    if device.type == "cuda" or INTERPRETED or _recording.get() is not None:
        return
    raise RuntimeError(
        f"Triton kernels cannot run on {device.type} tensors here: without a CUDA device they need Triton's "
        "interpreter, which has to be chosen before Triton is imported; set TRITON_INTERPRET=1 in the environment"
    )
