"""The rows of KERNELS: a fused operation, its equivalent in plain PyTorch, and operands for both."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

Shape = tuple[int, int, int, int]

DTYPES: dict[str, torch.dtype] = {  # allowed for x
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Norm(NamedTuple):
    """One BatchNorm as kernels take it: its parameters and running statistics, each None where it has none.

    Its tensors are [C], in any floating dtype and on the device of x; kernels compute with them in fp32, or in fp64
    where x is fp64.

    Attributes:
        weight: [C], gamma of Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1; None for ones.
        bias: [C], beta; None for zeros.
        running_mean: [C]. Evaluation needs it, training ignores it.
        running_var: [C]. Evaluation needs it, training ignores it.
        eps: what is added to the variance, above 0 (in evaluation 0 is allowed).

    Examples:
        >>> import torch
        >>> from kernels import Norm
        >>> bn = torch.nn.BatchNorm2d(64)
        >>> norm = Norm(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)
        >>> norm.weight is bn.weight
        True
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    eps: float | None  # None: no BatchNorm at all

    def contiguous(self) -> "Norm":
        """Return the same BatchNorm with contiguous tensors, as kernels expect them."""
        weight, bias, mean, var = (None if tensor is None else tensor.contiguous() for tensor in self[:4])
        return Norm(weight, bias, mean, var, self.eps)


NO_NORM = Norm(None, None, None, None, None)


class Operands(NamedTuple):
    """The inputs of a form: x [N, C, H, W] and its BatchNorm; the second operand z, like x, and its own, if any."""

    x: Tensor
    norm: Norm
    z: Tensor | None
    z_norm: Norm | None

    def named(self) -> dict[str, Tensor]:
        """The tensors that require a gradient, by name, x first."""
        tensors = {"x": self.x, "z": self.z, "weight": self.norm.weight, "bias": self.norm.bias}
        if self.z_norm is not None:
            tensors |= {"weight of z": self.z_norm.weight, "bias of z": self.z_norm.bias}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.requires_grad}

    def differentiable(self) -> list[Tensor]:
        """The tensors that require a gradient, x first."""
        return list(self.named().values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One form of a fused operation.

    `run` and `oracle` take operands and whether to normalise by the statistics of the batch (training), and return y;
    both are differentiable. The oracle is plain PyTorch: in fp64 it is the reference for parity, in the operands' own
    precision it is eager.
    """

    name: str
    run: Callable[[Operands, bool], Tensor]
    oracle: Callable[[Operands, bool], Tensor]
    second: bool = False  # takes z
    second_norm: bool = False  # and normalises it

    def make(
        self, shape: Shape, dtype: torch.dtype, device: str, *, channels_last: bool = True, seed: int = 0
    ) -> Operands:
        """Make operands for `run` and `oracle`; see `make_operands`."""
        return make_operands(self, shape, dtype, device, channels_last=channels_last, seed=seed)


def plain_batch_norm(x: Tensor, norm: Norm, training: bool) -> Tensor:
    """Apply PyTorch's BatchNorm without updating the running statistics."""
    mean, var = (None, None) if training else (norm.running_mean, norm.running_var)
    assert norm.eps is not None  # noqa: S101
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, training, eps=norm.eps)


def require_fitting(x: Tensor, norm: Norm, *, training: bool) -> None:
    """Refuse what nn.BatchNorm2d refuses, with its errors: kernels would read out of bounds.

    Raises:
        ValueError: x is not [N, C, H, W], training has one value per channel, or eps permits division by zero.
        RuntimeError: a parameter or statistic is not [C], or there are no running statistics in evaluation.
        NotImplementedError: the dtype of x is not one of DTYPES.
    """
    if x.dim() != 4:  # noqa: PLR2004
        raise ValueError(f"expected 4D input (got {x.dim()}D input)")
    if x.dtype not in DTYPES.values():
        allowed = ", ".join(map(str, DTYPES.values()))
        raise NotImplementedError(f"fused BatchNorm is not implemented for {x.dtype}: convert x to one of {allowed}")
    if training and x.numel() == x.shape[1] > 0:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
    if norm.eps is None or norm.eps < 0 or (training and norm.eps == 0):
        raise ValueError(f"batch_norm eps must be positive, but got {norm.eps}")
    for name, tensor in norm._asdict().items():
        if isinstance(tensor, Tensor) and tensor.numel() != x.shape[1]:
            raise RuntimeError(f"{name} should contain {x.shape[1]} elements not {tensor.numel()}")
        if tensor is None and name.startswith("running") and not training:
            raise RuntimeError(f"{name} must be defined in evaluation mode")


def make_operands(
    kernel: Kernel,
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    *,
    channels_last: bool = True,
    seed: int = 0,
) -> Operands:
    """Make random operands that require gradients: x, z and parameters standard normal, variances above 0.5.

    Parameters and statistics are fp32, or fp64 if x is.
    """
    generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def normal(*size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float32, device=device).to(dtype)

    def image() -> Tensor:
        return normal(*shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()

    def norm(eps: float) -> Norm:
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        weight, bias, mean, deviation = (normal(shape[1], dtype=exact) for _ in range(4))
        return Norm(weight.requires_grad_(), bias.requires_grad_(), mean, 0.5 + deviation.square(), eps)

    return Operands(image(), norm(1e-5), image() if kernel.second else None, norm(1e-3) if kernel.second_norm else None)
