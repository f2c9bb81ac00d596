"""How kernels run here: compiled for the GPU, or in Triton's interpreter where torch finds no CUDA device.

The package chooses, before Triton's first import of a process; whoever comes too late is told by `require_runnable`.
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
class Budget:
    """What a launch moves between memory and the processors, each value once, and what it computes."""

    read: int  # bytes
    written: int  # bytes
    flops: int = 0  # of products of matrices; a multiplication and an addition are two


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One launch, as it would have been: see `recorded`."""

    kernel: Any  # triton.JITFunction
    grid: tuple[int, ...]
    arguments: tuple[object, ...]
    options: dict[str, object]  # constexprs by name, num_warps and num_stages
    declared: Callable[[], Budget] | None = None
    chosen_for: object = None  # what tables of tiles were asked for, a `kernels.products.tiles.Product`

    @property
    def budget(self) -> Budget | None:
        """What it moves and computes; None: every tensor of the arguments is read or written once."""
        return None if self.declared is None else self.declared()

    @property
    def tensors(self) -> Iterator[Tensor]:
        return (argument for argument in self.arguments if isinstance(argument, Tensor))

    @property
    def bytes(self) -> int:
        """Read and written. What windows or programs read again comes from a cache."""
        budget = self.budget
        if budget is None:
            return sum(tensor.nbytes for tensor in self.tensors)
        return budget.read + budget.written


_recording: ContextVar[tuple[Architecture, list[Call]] | None] = ContextVar("recording", default=None)
_opaque: ContextVar[bool] = ContextVar("opaque", default=False)  # inside an op that torch.compile does not look into


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


def wrap_triton(kernel: Any) -> Any:  # noqa: ANN401 - a JITFunction, or what launches like one
    """What launches a kernel inside an op: traceable for torch.compile on a GPU, interpreted without one."""
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
    """Launch a kernel inside an opaque op, see `triton_op`, and where launches are recorded say what it moves.

    The budget is asked for only where somebody wants it: not at each launch, nor of tensors of unknown sizes. Where its
    tile was chosen by a table, `chosen_for` says for what.
    """
    recording = _recording.get()
    if recording is None:
        kernel[grid](*arguments, **options)
    else:
        recorder = _Recorder(kernel, recording[1])
        recorder.launch(grid, *arguments, budget=budget, chosen_for=chosen_for, **options)


FUNCTIONS: dict[str, Callable[..., Any]] = {}  # under each op, by its name: for who looks inside while it is recorded


def triton_op(
    name: str, *, mutates_args: tuple[str, ...] = (), opaque: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Register a function that launches kernels as an op of torch; it is its own fake implementation.

    torch.compile sees the kernels of a `torch.library.triton_op`. In the interpreter it cannot, and the op is opaque.
    An op that orders its own work from end to end is opaque everywhere.
    """

    def register(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - a CustomOpDef
        FUNCTIONS[name] = function
        if not (INTERPRETED or opaque):
            return torch.library.triton_op(name, function, mutates_args=mutates_args)

        def fake(*arguments: object) -> Any:  # noqa: ANN401 - what the op returns
            with nullcontext() if _recording.get() else recorded():  # a list of launches goes on
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
