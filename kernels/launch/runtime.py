"""How kernels run: compiled for the GPU, or in Triton's interpreter where torch finds no CUDA device.

`kernels/__init__.py` chooses, before the process imports Triton; if that was too late, `require_runnable` says so.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.launch import interpreter

INTERPRETED: bool = triton.knobs.runtime.interpret
TRITON: tuple[int, ...] = tuple(map(int, triton.__version__.split(".")[:2]))

if INTERPRETED:
    interpreter.mend()


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The properties of a device that launch configurations depend on."""

    name: str
    multiprocessors: int
    registers: int = 65536  # 32-bit, per multiprocessor
    threads: int = 2048  # resident per multiprocessor, at most
    shared_bytes: int = 0  # available to one program


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        # A100, H100 and H200, B200: CUDA C++ Programming Guide, technical specifications per compute capability
        Architecture(name="sm_80", multiprocessors=108, shared_bytes=163 * 1024),
        Architecture(name="sm_90", multiprocessors=132, shared_bytes=227 * 1024),
        Architecture(name="sm_100", multiprocessors=148, shared_bytes=227 * 1024),
        # runs one program at a time, each operation a numpy call: programs are few and large, but more than one
        Architecture(name="interpreter", multiprocessors=3),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The memory traffic of a launch, each value counted once, and its arithmetic."""

    read: int  # bytes
    written: int  # bytes
    flops: int = 0  # of matrix products; a multiply-add counts as two


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One launch that was recorded instead of run; see `recorded`."""

    kernel: Any  # triton.JITFunction
    grid: tuple[int, ...]
    arguments: tuple[object, ...]
    options: dict[str, object]  # constexprs by name, num_warps and num_stages
    declared: Callable[[], Budget] | None = None
    chosen_for: object = None  # the key of the tile tables, a `kernels.products.tiles.Product`

    @property
    def budget(self) -> Budget | None:
        """Its traffic and arithmetic; None: every tensor argument is read or written once."""
        return None if self.declared is None else self.declared()

    @property
    def tensors(self) -> Iterator[Tensor]:
        return (argument for argument in self.arguments if isinstance(argument, Tensor))

    @property
    def bytes(self) -> int:
        """Bytes read and written; what windows or programs read again comes from a cache."""
        budget = self.budget
        if budget is None:
            return sum(tensor.nbytes for tensor in self.tensors)
        return budget.read + budget.written


_recording: ContextVar[tuple[Architecture, list[Call]] | None] = ContextVar("recording", default=None)
_opaque: ContextVar[bool] = ContextVar("opaque", default=False)  # inside an op that torch.compile does not trace


@contextmanager
def recorded(name: str | None = None) -> Iterator[list[Call]]:
    """List launches inside the context instead of running them, configured for an architecture (default: this one)."""
    calls: list[Call] = []
    token = _recording.set((architecture() if name is None else ARCHITECTURES[name], calls))
    try:
        yield calls
    finally:
        _recording.reset(token)


def architecture() -> Architecture:
    """Return the architecture that kernels are launched on, or recorded for."""
    recording = _recording.get()
    if recording is not None:
        return recording[0]
    return ARCHITECTURES["interpreter"] if INTERPRETED else _device_architecture(torch.cuda.current_device())


@lru_cache
def _device_architecture(index: int) -> Architecture:
    properties = torch.cuda.get_device_properties(index)
    name = f"sm_{properties.major}{properties.minor}"
    specification = ARCHITECTURES.get(name, ARCHITECTURES["sm_90"])
    return Architecture(
        name=name, multiprocessors=properties.multi_processor_count, shared_bytes=specification.shared_bytes
    )


class _Recorder:
    """Stands in for a kernel while launches are recorded."""

    def __init__(self, kernel: Any, calls: list[Call]) -> None:  # noqa: ANN401
        self._kernel, self._calls = kernel, calls

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self.launch, grid)

    def launch(
        self,
        grid: tuple[int, ...],
        *arguments: object,
        budget: Callable[[], Budget] | None = None,
        chosen_for: object = None,
        **options: object,
    ) -> None:
        call = Call(
            kernel=self._kernel,
            grid=grid,
            arguments=arguments,
            options=options,
            declared=budget,
            chosen_for=chosen_for,
        )
        self._calls.append(call)


def wrap_triton(kernel: Any) -> Any:  # noqa: ANN401 - a JITFunction or a stand-in
    """Wrap a kernel to be launched inside an op: traceable by torch.compile on a GPU, interpreted without one."""
    recording = _recording.get()
    if recording is not None:
        return _Recorder(kernel, recording[1])
    return kernel if INTERPRETED or _opaque.get() else torch.library.wrap_triton(kernel)


def launch_kernel(
    kernel: Any,  # noqa: ANN401 - a JITFunction
    grid: tuple[int, ...],
    *arguments: object,
    budget: Callable[[], Budget],
    chosen_for: object = None,
    **options: object,
) -> None:
    """Launch a kernel inside an opaque op (see `triton_op`), or record the launch with its budget.

    The budget is computed only when it is read: not at each launch, nor for tensors of unknown sizes. `chosen_for` is
    the key by which a table chose the tile, if one did.
    """
    recording = _recording.get()
    if recording is None:
        kernel[grid](*arguments, **options)
    else:
        recorder = _Recorder(kernel, recording[1])
        recorder.launch(grid, *arguments, budget=budget, chosen_for=chosen_for, **options)


FUNCTIONS: dict[str, Callable[..., Any]] = {}  # behind each op, by its name: to record the launches inside it


def triton_op(
    name: str, *, mutates_args: tuple[str, ...] = (), opaque: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Register a function that launches kernels as an op of torch; it is its own fake implementation.

    torch.compile traces into a `torch.library.triton_op`. It cannot in the interpreter, where the op is opaque instead.
    An op that schedules all of its own work is opaque everywhere.
    """

    def register(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - a CustomOpDef
        FUNCTIONS[name] = function
        if not (INTERPRETED or opaque):
            return torch.library.triton_op(name, function, mutates_args=mutates_args)

        def fake(*arguments: object) -> Any:  # noqa: ANN401 - what the op returns
            with nullcontext() if _recording.get() else recorded():  # inside a recording, add to its list
                return function(*arguments)

        def run(*arguments: object) -> Any:  # noqa: ANN401 - what the op returns
            token = _opaque.set(True)
            try:
                return function(*arguments)
            finally:
                _opaque.reset(token)

        schema = torch.library.infer_schema(function, mutates_args=mutates_args)
        op = torch.library.custom_op(name, run, mutates_args=mutates_args, schema=schema)
        op.register_fake(fake)
        return op

    return register


def require_runnable(device: torch.device) -> None:
    """Refuse with an explanation what Triton would refuse with a traceback.

    Raises:
        RuntimeError: kernels cannot run on tensors of this device; the message says what to do.
    """
    if device.type == "cuda" or INTERPRETED or _recording.get() is not None:
        return
    raise RuntimeError(
        f"Triton kernels cannot run on {device.type} tensors here: without a CUDA device they need Triton's "
        "interpreter, which has to be chosen before Triton is imported; set TRITON_INTERPRET=1 in the environment"
    )
