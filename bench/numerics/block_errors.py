"""Errors of a bottleneck block against fp64, beside eager's at the same precision: every tensor of a training step.

A value within rounding of zero may land on either side of a ReLU. Where two runs differ in that, their gradients differ
by whole values, and at 16 bits that is most of any distance: about the root of the share of the values that change
sides. It says nothing of a run's arithmetic. So every run has a reference of its own: fp64 whose ReLUs let pass what
that run's ReLUs did. What is left is rounding. `sides` counts the values that a run has on other sides than fp64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.overrides import TorchFunctionMode

from bench.kernels.operands import mapped
from bench.numerics.types import Compared, Comparison
from kernels.batch_norm.act import bn_act_forward
from kernels.bottleneck.forms import BlockForm, BlockOperands
from kernels.bottleneck.forward import bottleneck
from kernels.bottleneck.parts import CONV1, CONV2, CONV3, Kept
from kernels.kernel import Norm

GRADIENT_SEED = 2  # not that of the operands


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStep:
    """The result of a training step of a block: tensors by name, and what each of its three ReLUs let pass."""

    tensors: dict[str, Tensor]
    passed: tuple[Tensor, ...]


class Watched(TorchFunctionMode):
    """Records every BatchNorm's statistics and what every ReLU lets pass, or sets what ReLUs let pass."""

    def __init__(self, passing: tuple[Tensor, ...] = ()) -> None:
        super().__init__()
        self.passing = passing
        self.passed: list[Tensor] = []
        self.statistics: list[Tensor] = []  # [2, C]: mean and biased variance

    def __torch_function__(
        self,
        func: Callable[..., Tensor],
        types: object,
        args: tuple[Tensor, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> Tensor:
        """Torch's: called in place of every function of torch."""
        if func is F.relu and self.passing:
            self.passed.append(self.passing[len(self.passed)])
            return args[0].where(self.passed[-1], 0.0)
        out = func(*args, **(kwargs or {}))
        if func is F.relu:
            self.passed.append(out.detach() > 0)
        if func is F.batch_norm:
            self.statistics.append(_batch_norms_own(args[0].detach()))
        return out


def _batch_norms_own(x: Tensor) -> Tensor:
    """Mean and biased variance [2, C] of x [N, C, H, W] as PyTorch's BatchNorm finds them: it tells by its averages."""
    kept = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, var = (torch.zeros(x.shape[1], dtype=kept, device=x.device) for _ in range(2))
    F.batch_norm(x, mean, var, training=True, momentum=1.0)
    count = x.numel() // x.shape[1]
    return torch.stack([mean, var * ((count - 1) / count)])


def plain(form: BlockForm, operands: BlockOperands, dout: Tensor, passing: tuple[Tensor, ...] = ()) -> BlockStep:
    """A step in plain PyTorch, in the precision of the operands."""
    with Watched(passing) as watched:
        out = form.oracle(operands, True)
    return BlockStep(tensors=_tensors(operands, out, dout, watched.statistics[CONV3]), passed=tuple(watched.passed))


def scheme(operands: BlockOperands, dout: Tensor) -> BlockStep:
    """A step of the block that never writes its widest tensors."""
    out, statistics = bottleneck(operands.x, operands.filters, operands.norms, operands.geometry)
    kept = Kept(*out.grad_fn.saved_tensors[-len(Kept._fields) :])  # type: ignore[union-attr]
    y1 = _normalised(kept.x1, operands.norms[CONV1], kept.statistics1)
    y2 = _normalised(kept.x2, operands.norms[CONV2], kept.statistics2)
    passed = tuple(y.detach() > 0 for y in (y1, y2, out))
    return BlockStep(tensors=_tensors(operands, out, dout, statistics[CONV3]), passed=passed)


def _normalised(x: Tensor, norm: Norm, statistics: Tensor) -> Tensor:
    """relu(bn(x)), the same bits as in every kernel that makes it again."""
    known = norm._replace(running_mean=statistics[0], running_var=statistics[1])
    y, _, _ = bn_act_forward(x, None, known, None, training=False, relu=True)
    return y


def _tensors(operands: BlockOperands, out: Tensor, dout: Tensor, statistics: Tensor) -> dict[str, Tensor]:
    inputs = operands.named()
    gradients = torch.autograd.grad(out, list(inputs.values()), dout.to(out.dtype))
    results = {"out": out.detach(), "mean of bn3": statistics[0], "var of bn3": statistics[1]}
    return results | {f"d {name}": gradient for name, gradient in zip(inputs, gradients, strict=True)}


def gradient_like(out: Tensor, *, mean: float = 1.0, size: float = 1.0) -> Tensor:
    """A gradient of a block's result: normal around a mean, or the terms with sums over all rows would hardly count."""
    generator = torch.Generator(out.device).manual_seed(GRADIENT_SEED)
    dout = (torch.randn(out.shape, generator=generator, device=out.device) + mean) * size
    return dout.to(out.dtype).contiguous(memory_format=torch.channels_last)


def error(out: Tensor, ref: Tensor) -> float:
    """||out - ref|| / ||ref||, or where ref is zero ||out||; infinity where not all of out is finite."""
    exact = ref.double()
    distance = float((out.double() - exact).norm())
    return distance / (float(exact.norm()) or 1.0) if isfinite(distance) else inf


def compare(form: BlockForm, operands: BlockOperands, *, mean: float = 1.0, size: float = 1.0) -> Comparison:
    """The errors of the scheme and of eager against fp64, see `gradient_like` for mean and size."""
    exact = mapped(operands, Tensor.double)
    with torch.no_grad():
        dout = gradient_like(form.oracle(operands, True), mean=mean, size=size)
    steps = {"scheme": scheme(operands, dout), "eager": plain(form, operands, dout)}
    fp64 = plain(form, exact, dout.double())
    errors, sides = {}, {}
    for name, step in steps.items():
        reference = plain(form, exact, dout.double(), step.passed)
        errors[name] = {label: error(step.tensors[label], tensor) for label, tensor in reference.tensors.items()}
        changed = [(a != b).sum().item() for a, b in zip(step.passed, fp64.passed, strict=True)]
        sides[name] = sum(changed) / sum(passed.numel() for passed in fp64.passed)
    return Comparison(
        tensors=tuple(
            Compared(tensor=label, error=value, eager_error=errors["eager"][label])
            for label, value in errors["scheme"].items()
        ),
        sides=sides["scheme"],
        eager_sides=sides["eager"],
    )
