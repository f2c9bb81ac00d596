"""Compiles one launch of a kernel ahead of time, as Triton's JIT would for a GPU, and reads the figures of the result.

Needs no GPU, but a process in which Triton does not interpret kernels (TRITON_INTERPRET=0).
"""

import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import kernel
from kernels.audit.ptx import accesses
from kernels.launch.runtime import ARCHITECTURES, Call

DTYPES = {name: dtype for name, dtype in kernel.DTYPES.items() if name != "fp64"}  # whose products Triton refuses

_TYPES = {dtype: name for name, dtype in DTYPES.items()} | {torch.uint8: "u8", torch.int64: "i64"}
_ALIGNMENT = 16  # the multiple that the JIT looks for in pointers (bytes) and integers

# NVIDIA's occupancy calculator (cuda_occupancy.h), compute capability 8.0 to 10.0
_WARP_REGISTERS = 256  # the unit in which a warp's registers are allocated
_QUARTERS = 4  # of a multiprocessor, each with its own registers and warps
_RESIDENT_PROGRAMS = 32
_SHARED_UNIT = 128
_RESERVED_BYTES = 1024  # of shared memory, per program

_USAGE = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stored>\d+) bytes spill stores, (?P<loaded>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """A kernel and all that the compiler is told about one launch of it."""

    kernel: str  # "package.module:function"
    arch: str  # of ARCHITECTURES
    signature: tuple[tuple[str, str], ...]  # the type of each argument
    constants: tuple[tuple[str, object], ...]
    divisible: tuple[str, ...]  # arguments that are multiples of 16
    num_warps: int
    num_stages: int | None  # None: the compiler's default


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Measurements of a compiled kernel."""

    registers: int  # per thread
    spill_bytes: int  # stored and loaded per thread because registers do not suffice
    stack_bytes: int  # of the stack frame of a thread, which it spills to
    static_shared_bytes: int  # per program
    dynamic_shared_bytes: int
    load_bits: int  # the widest access to global memory by a thread
    store_bits: int
    narrowest_bits: dict[str, int]  # per argument: of the accesses whose address depends on it, if any


def of_call(call: Call, arch: str) -> Compilation:
    """Describe what the JIT would compile for a launch: None and 1 are constants, multiples of 16 are noted.

    Tensors count as aligned, as those that torch allocates are.
    """
    options = dict(call.options)
    num_warps, num_stages = options.pop("num_warps"), options.pop("num_stages", None)
    assert isinstance(num_warps, int) and isinstance(num_stages, int | None)  # noqa: S101, PT018
    values = dict(zip(call.kernel.arg_names, call.arguments, strict=False)) | options
    constants = {name: value for name, value in values.items() if name in options or value is None or _is_one(value)}
    return Compilation(
        kernel=f"{call.kernel.__module__}:{call.kernel.__name__}",
        arch=arch,
        signature=tuple((name, "constexpr" if name in constants else _type(value)) for name, value in values.items()),
        constants=tuple(constants.items()),
        divisible=tuple(name for name, value in values.items() if name not in constants and _divisible(value)),
        num_warps=num_warps,
        num_stages=num_stages,
    )


def _is_one(value: object) -> bool:
    return type(value) is int and value == 1


def _divisible(value: object) -> bool:
    return isinstance(value, Tensor) or (type(value) is int and value % _ALIGNMENT == 0)


def _type(value: object) -> str:
    match value:
        case Tensor():
            return f"*{_TYPES[value.dtype]}"
        case bool():
            return "i1"
        case int():
            return "i32" if -(2**31) <= value < 2**31 else "i64"
        case float():
            return "fp32"
    raise TypeError(f"kernels take tensors, booleans, integers and floats, not {value!r}")


def compiled(compilation: Compilation) -> Figures:
    """Compile with Triton and ptxas, and read the figures.

    Raises:
        triton.errors.TritonError: the compiler refuses the kernel.
        RuntimeError: a pass of the compiler fails.
    """
    module, _, function = compilation.kernel.partition(":")
    names = [argument for argument, _ in compilation.signature]
    source = ASTSource(
        fn=getattr(import_module(module), function),
        signature=dict(compilation.signature),
        constexprs={(names.index(argument),): value for argument, value in compilation.constants},
        attrs={(names.index(argument),): [["tt.divisibility", _ALIGNMENT]] for argument in compilation.divisible},
    )
    target = GPUTarget("cuda", int(compilation.arch.removeprefix("sm_")), 32)
    triton.knobs.nvidia.dump_ptxas_log = True  # to stdout; a result from a cache has no log
    triton.knobs.compilation.always_compile = True
    with redirect_stdout(StringIO()) as log:
        options = {"num_warps": compilation.num_warps, "num_stages": compilation.num_stages}
        chosen = {name: value for name, value in options.items() if value is not None}
        kernel = triton.compile(source, target=target, options=chosen)
    usage = _USAGE.search(log.getvalue())
    assert usage is not None, log.getvalue()  # noqa: S101
    global_accesses = accesses(kernel.asm["ptx"])
    parameters = [name for name, type_ in compilation.signature if type_ != "constexpr"]
    return Figures(
        registers=int(usage["registers"]),
        spill_bytes=int(usage["stored"]) + int(usage["loaded"]),
        stack_bytes=int(usage["stack"]),
        static_shared_bytes=int(usage["shared"] or 0),
        dynamic_shared_bytes=kernel.metadata.shared,
        load_bits=max((access.bits for access in global_accesses if not access.store), default=0),
        store_bits=max((access.bits for access in global_accesses if access.store), default=0),
        narrowest_bits={
            parameter: min(access.bits for access in global_accesses if number in access.parameters)
            for number, parameter in enumerate(parameters)
            if any(number in access.parameters for access in global_accesses)
        },
    )


def occupancy(compilation: Compilation, figures: Figures) -> tuple[int, int, str]:
    """Return the warps of a kernel that fit on a multiprocessor, the most that it can hold, and what limits them."""
    machine = ARCHITECTURES[compilation.arch]
    warps = compilation.num_warps
    registers = _rounded_up(figures.registers * 32, _WARP_REGISTERS)
    shared = figures.static_shared_bytes + figures.dynamic_shared_bytes + _RESERVED_BYTES
    programs = {
        "threads": machine.threads // (32 * warps),
        "registers": machine.registers // _QUARTERS // registers * _QUARTERS // warps,
        "shared memory": (machine.shared_bytes + _RESERVED_BYTES) // _rounded_up(shared, _SHARED_UNIT),
        "programs": _RESIDENT_PROGRAMS,
    }
    limit = min(programs, key=programs.__getitem__)
    return programs[limit] * warps, machine.threads // 32, limit


def _rounded_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
