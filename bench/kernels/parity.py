"""Is a fused op right? Its result and gradients against fp64, beside eager's own errors at the same precision.

The rule is that of `bench.parity.verdict`, for one op: error = ||out - ref|| / ||ref||, and a tensor passes when

    error <= min(max(MULTIPLIER * eager_error, ROUNDINGS * eps), CEILING)

Values within rounding of zero may change sides of a ReLU, and values within rounding of each other may change places in
a maximum: such a value has a wrong gradient in a right program. The few largest differences are therefore set aside,
eager's as well. What is wrong in a formula shows in far more values.
"""

import torch
from torch import Tensor

from bench.kernels.operands import Function, directions, function_of, mapped, operands_of, oracle_of
from bench.kernels.types import Check, Op
from bench.parity.errors import relative_error
from bench.parity.tolerances import CEILING
from bench.types import Device, TensorError
from kernels.bottleneck.forms import BlockOperands
from kernels.kernel import Operands
from kernels.launch.runtime import INTERPRETED
from resnet.precision import DTYPES

MULTIPLIER = 3.0  # another order of summation, or another point of rounding
ROUNDINGS = {  # in units of eps, for tensors where eager is lucky
    "fp32": 8.0,  # the sums over all rows round too, and not in eager on CPU, which takes them in fp64
    "bf16": 1.0,  # only the result is rounded
    "fp16": 1.0,
}
BLOCK_ROUNDINGS = ROUNDINGS | {"fp32": 32.0}  # of a whole block: three BatchNorms, each with sums of sums before it
_SEED, _GRADIENT_SEED = 1, 2  # not that of the operands which are timed; a gradient like x would give no dx
_SET_ASIDE = 2**18  # one value of so many, and a few more
_INTERPRETED_ELEMENTS = 2**19  # of x: what Triton's interpreter does in less than a second
_FEWEST_IMAGES = 2  # BatchNorm sums over images too


def check(op: Op, device: Device) -> Check:
    """The verdict over y and every gradient that there is, on fresh inputs; in the interpreter at a batch it can do."""
    batch_size = _interpreted_batch(op) if INTERPRETED else op.shape[0]
    operands = operands_of(op, device, batch_size=batch_size, seed=_SEED)
    exact = mapped(operands, Tensor.double)
    with torch.set_grad_enabled("backward" in directions(op)):
        reference = _results(oracle_of(op), exact, op)
        fused, eager = (_results(function, operands, op) for function in (function_of(op), oracle_of(op)))
    floor = (BLOCK_ROUNDINGS if op.block else ROUNDINGS)[op.dtype] * torch.finfo(DTYPES[op.dtype]).eps
    errors = []
    for name, ref in reference.items():
        eager_error = error(eager[name], ref)
        errors.append(
            TensorError(
                tensor=name,
                error=error(fused[name], ref),
                eager_error=eager_error,
                tolerance=min(max(MULTIPLIER * eager_error, floor), CEILING),
            )
        )
    return Check(batch_size=batch_size, tensors=len(errors), worst=max(errors, key=lambda tensor: tensor.severity))


def error(out: Tensor, ref: Tensor) -> float:
    """Relative L2 error without the few largest differences; infinity for another shape, NaN or infinities."""
    if out.shape != ref.shape or not out.isfinite().all():
        return float("inf")
    aside = min(4 + ref.numel() // _SET_ASIDE, ref.numel() // 16)
    largest = (out.detach().double() - ref).abs().flatten().topk(aside).indices
    kept = out.detach().double().flatten()  # a copy: it was of another dtype
    return relative_error(kept.index_copy(0, largest, ref.flatten()[largest]), ref.flatten())


def _interpreted_batch(op: Op) -> int:
    n, channels, height, width = op.shape
    return min(n, max(_FEWEST_IMAGES, _INTERPRETED_ELEMENTS // (channels * height * width)))


def _results(function: Function, operands: Operands | BlockOperands, op: Op) -> dict[str, Tensor]:
    """y and the gradient of every operand that has one, by name."""
    y = function(operands, op.mode == "train")
    if "backward" not in directions(op):
        return {"y": y}
    generator = torch.Generator(y.device).manual_seed(_GRADIENT_SEED)
    # a mean far from zero, or the terms with sums over all rows would hardly count
    dy = (torch.randn(y.shape, generator=generator, device=y.device) + 1.0).to(operands.x.dtype)
    dy = dy.contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(y, operands.differentiable(), dy)
    return {"y": y, **{f"d{name}": gradient for name, gradient in zip(operands.named(), gradients, strict=True)}}
