"""What Triton's interpreter gets wrong, put right, so that parity on a CPU is that of the device.

Between fp32 and bf16 it truncates where every GPU rounds to nearest even, and takes some thirty passes over the data.
Its products of bf16 matrices multiply the 16 bits as integers.
Triton 3.6 asks numpy for the integer in an array of one element, which numpy refuses since 2.4: no loop would run.
Triton's own functions, `tl.sum` for instance, are interpreted only where TRITON_INTERPRET was set before Triton was
imported, and torchvision, `torch._inductor` and the optimizers of torch import it.
"""

from functools import cache
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

_ROUNDING_BITS = 16  # that fp32 has and bf16 has not
_QUIET_NAN = np.uint16(0x7FC0)

_convert_other = interpreter._convert_float
_patch_others = interpreter._patch_lang_tensor
_dot_others = interpreter.InterpreterBuilder.create_dot


def mend() -> None:
    """Replace conversions between fp32 and bf16, and to bounds of a loop, and products of bf16; the others stay.

    And interpret the functions that a kernel calls, however early they were decorated.
    """
    interpreter._convert_float = _convert
    interpreter._patch_lang_tensor = _patch_lang_tensor
    interpreter.InterpreterBuilder.create_dot = _dot
    JITFunction.__call__ = _call


def _call(function: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
    """In place of the method that says that a function to be compiled cannot be called."""
    return _interpreted(function.fn)(*arguments, **options)


@cache
def _interpreted(function: Any) -> Any:  # noqa: ANN401
    return interpreter.InterpretedFunction(function)


def _dot(builder: Any, a: Any, b: Any, *others: Any) -> Any:  # noqa: ANN401
    """As the method it replaces: the product of two matrices, added to a third."""
    return _dot_others(builder, _widened(a), _widened(b), *others)


def _widened(matrix: Any) -> Any:  # noqa: ANN401
    """The same in fp32 where it is bf16, whose products are exact in fp32."""
    if matrix.dtype.scalar != tl.bfloat16:
        return matrix
    return interpreter.TensorHandle(_convert(matrix.data, tl.bfloat16, tl.float32, None).view(np.float32), tl.float32)


def _patch_lang_tensor(tensor: Any, scope: Any) -> None:  # noqa: ANN401
    """As the function it replaces: make a class of Triton what the interpreter needs."""
    _patch_others(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda scalar: int(scalar.handle.data.item()))


def _convert(values: np.ndarray, source: tl.dtype, target: tl.dtype, rounding_mode: Any) -> np.ndarray:  # noqa: ANN401
    """As the function it replaces: values, and bf16 as its bits, to the bits of the target."""
    if (source, target) == (tl.float32, tl.bfloat16):
        return _round_to_bf16(values)
    if (source, target) == (tl.bfloat16, tl.float32):
        return values.astype(np.uint32) << np.uint32(_ROUNDING_BITS)
    converted: np.ndarray = _convert_other(values, source, target, rounding_mode)
    return converted


def _round_to_bf16(values: np.ndarray) -> np.ndarray:
    """The nearest bf16 as its 16 bits, the even one of two; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    even = (bits >> np.uint32(_ROUNDING_BITS)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + even) >> np.uint32(_ROUNDING_BITS)
    return np.where(np.isnan(values), _QUIET_NAN, rounded.astype(np.uint16))
