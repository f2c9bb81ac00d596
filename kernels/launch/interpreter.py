"""Corrections of Triton's interpreter, so that parity on a CPU is that of the device.

From fp32 to bf16 it truncates where every GPU rounds to nearest even, and takes some thirty passes over the data.
Its products of bf16 matrices multiply the 16-bit patterns as integers.
In Triton 3.6 the bounds of loops are arrays of one element, which numpy since 2.4 does not convert to integers: no loop
would run.
Triton's own functions, `tl.sum` for instance, are interpreted only where TRITON_INTERPRET was set before Triton was
imported, and torchvision, `torch._inductor` and the optimizers of torch import it.
"""

from functools import cache
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

_ROUNDING_BITS = 16  # of the fraction, that bf16 drops from fp32
_QUIET_NAN = np.uint16(0x7FC0)

_original_convert = interpreter._convert_float
_original_patch = interpreter._patch_lang_tensor
_original_dot = interpreter.InterpreterBuilder.create_dot


def mend() -> None:
    """Replace the conversions between fp32 and bf16, the conversion to loop bounds, and the products of bf16.

    Also interpret the functions that a kernel calls, however early they were decorated.
    """
    interpreter._convert_float = _convert
    interpreter._patch_lang_tensor = _patch_lang_tensor
    interpreter.InterpreterBuilder.create_dot = _dot
    JITFunction.__call__ = _call


def _call(function: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
    """Interpret a function of Triton where the replaced method says that it cannot be called."""
    return _interpreted(function.fn)(*arguments, **options)


@cache
def _interpreted(function: Any) -> Any:  # noqa: ANN401
    return interpreter.InterpretedFunction(function)


def _dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:  # noqa: ANN401
    """Multiply two matrices and add a third, as the replaced method does."""
    return _original_dot(builder, _widened(a), _widened(b), *rest)


def _widened(matrix: Any) -> Any:  # noqa: ANN401
    """Convert a bf16 matrix to fp32, where its products are exact; return any other as it is."""
    if matrix.dtype.scalar != tl.bfloat16:
        return matrix
    return interpreter.TensorHandle(_convert(matrix.data, tl.bfloat16, tl.float32, None).view(np.float32), tl.float32)


def _patch_lang_tensor(tensor: Any, scope: Any) -> None:  # noqa: ANN401
    """Patch a tensor class of Triton for the interpreter, as the replaced function does, and add __index__."""
    _original_patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda scalar: int(scalar.handle.data.item()))


def _convert(values: np.ndarray, source: tl.dtype, target: tl.dtype, rounding_mode: Any) -> np.ndarray:  # noqa: ANN401
    """Convert values to the target dtype, as the replaced function does; bf16 is passed and returned as its bits."""
    if (source, target) == (tl.float32, tl.bfloat16):
        return _round_to_bf16(values)
    if (source, target) == (tl.bfloat16, tl.float32):
        return values.astype(np.uint32) << np.uint32(_ROUNDING_BITS)
    converted: np.ndarray = _original_convert(values, source, target, rounding_mode)
    return converted


def _round_to_bf16(values: np.ndarray) -> np.ndarray:
    """Round to the nearest bf16, ties to even, and return its 16 bits; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    even = (bits >> np.uint32(_ROUNDING_BITS)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + even) >> np.uint32(_ROUNDING_BITS)
    return np.where(np.isnan(values), _QUIET_NAN, rounded.astype(np.uint16))
