"""`nn.BatchNorm2d` fused with the operations that follow it in a residual network, by `kernels`."""

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from kernels.batch_norm.act import bn_act
from kernels.batch_norm.act_conv import bn_act_conv
from kernels.batch_norm.pool import bn_pool
from kernels.batch_norm.statistics import update_running_statistics
from kernels.kernel import Norm

Activation = Literal["relu", "none"]


class FusedBatchNormAct2d(nn.BatchNorm2d):
    """BatchNorm, then an optional addition of a second operand, then an activation; differentiable once.

    Parameters, buffers, modes and errors are those of `nn.BatchNorm2d`, and it can be differentiated once. The maths is
    that of Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1, computed as `kernels.bn_act` does.

    Args:
        num_features: C, the channels of x.
        eps: what is added to the variance.
        momentum: the weight of a batch in the running statistics; None for the average over all batches.
        affine: have a weight and a bias, both [C].
        track_running_stats: have running statistics; without them evaluation normalises by the batch as well.
        activation: `"relu"` or `"none"`.

    Raises:
        ValueError: another activation.

    Examples:
        >>> import torch
        >>> from resnet import FusedBatchNormAct2d
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU interpreted, and slow
        >>> bn = FusedBatchNormAct2d(8).to(device)
        >>> x = torch.randn(2, 8, 7, 7, device=device)
        >>> bn(x, x).shape  # relu(bn(x) + x)
        torch.Size([2, 8, 7, 7])
        >>> bn.pool(x).shape
        torch.Size([2, 8, 4, 4])
    """

    activation: Activation = "relu"
    rebuild: bool = False  # see `into`

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        if activation not in get_args(Activation):
            raise ValueError(f"unknown activation {activation!r}: choose one of {', '.join(get_args(Activation))}")
        self.activation = activation

    def forward(self, x: Tensor, z: Tensor | None = None, z_norm: "FusedBatchNormAct2d | None" = None) -> Tensor:
        """Compute act(bn(x)), act(bn(x) + z) or act(bn(x) + z_norm(z)), like x.

        Args:
            x: [N, C, H, W], fp16, bf16, fp32 or fp64.
            z: like x, the shortcut of a residual block; another dtype is converted to x's.
            z_norm: the BatchNorm of a projected shortcut; its own activation is ignored.

        Raises:
            ValueError: as `nn.BatchNorm2d` does, e.g. for one value a channel in training; or running statistics that
                have gaps between their values.
            NotImplementedError: x has another dtype.
            RuntimeError: tensors that do not fit each other, or kernels that cannot run here.
        """
        batch = self.normalises_by_batch()
        if z is not None and z_norm is not None and z_norm.normalises_by_batch() != batch:
            z, z_norm = z_norm._alone(z), None
        norm = None if z_norm is None else z_norm.norm()
        y, statistics = bn_act(x, self.norm(), z, norm, training=batch, relu=self.activation == "relu")
        self.track(values(x), statistics[:2])
        if z is not None and z_norm is not None:
            z_norm.track(values(z), statistics[2:])
        return y

    def pool(self, x: Tensor) -> Tensor:
        """Compute max_pool2d(relu(bn(x)), 3, stride=2, padding=1), whichever the activation: the stem of a ResNet.

        Args:
            x: [N, C, H, W], fp16, bf16, fp32 or fp64, to [N, C, ceil(H / 2), ceil(W / 2)] in the same dtype.

        Raises:
            ValueError: as `forward` does.
            NotImplementedError: x has another dtype.
            RuntimeError: tensors that do not fit each other, or kernels that cannot run here.
        """
        y, statistics = bn_pool(x, self.norm(), training=self.normalises_by_batch())
        self.track(values(x), statistics)
        return y

    def into(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Compute conv(act(bn(x))).

        With `rebuild`, an attribute that `fuse(model, rebuild=True)` sets, the input of the convolution is not saved
        for the backward pass but recomputed there from x: two more touches of it for one tensor less in memory. It is
        saved all the same if the convolution is not plain (bias, padding other than by a number of zeros, hooks) or
        casts its input.

        Args:
            conv: of C input channels, [C_out, C / groups, KH, KW].
            x: [N, C, H, W], fp16, bf16, fp32 or fp64, to [N, C_out, H_out, W_out].

        Raises:
            ValueError: as `forward` does.
            NotImplementedError: x has another dtype.
            RuntimeError: tensors that do not fit each other, or kernels that cannot run here.
        """
        rebuilt = self.rebuild and torch.is_grad_enabled() and self.activation == "relu" and x.numel() > 0
        if not (rebuilt and is_plain(conv)):
            return cast("Tensor", conv(self(x)))
        weight = conv.weight
        if autocasts(x):
            weight = weight.to(torch.get_autocast_dtype(x.device.type))
        if weight.dtype != x.dtype:
            return cast("Tensor", conv(self(x)))
        out, statistics = bn_act_conv(x, self.norm(), conv, weight, training=self.normalises_by_batch())
        self.track(values(x), statistics)
        return out

    def extra_repr(self) -> str:
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, activation={self.activation}"

    def _alone(self, x: Tensor) -> Tensor:
        """Compute bn(x) without an activation."""
        y, statistics = bn_act(x, self.norm(), training=self.normalises_by_batch(), relu=False)
        self.track(values(x), statistics)
        return y

    def norm(self) -> Norm:
        """Return this BatchNorm as kernels take it: its own tensors, not copies."""
        return Norm(self.weight, self.bias, self.running_mean, self.running_var, self.eps)

    def normalises_by_batch(self) -> bool:
        """Whether the statistics are those of the batch in this mode, otherwise the running statistics."""
        return self.training or self.running_mean is None

    def track(self, count: int, statistics: Tensor) -> None:
        """Update the running statistics by those of a batch of `count` values per channel, when `nn.BatchNorm2d` would.

        Args:
            count: N * H * W.
            statistics: [2, C], mean and biased variance; ignored for an empty batch.

        Raises:
            ValueError: running statistics that have gaps between their values.
            RuntimeError: kernels cannot run here.
        """
        if not (self.training and self.track_running_stats):
            return
        mean, var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if mean is None or var is None or batches is None:
            return
        if count == 0:
            batches.add_(1)
            return
        update_running_statistics(mean, var, batches, statistics.detach(), self.momentum, count)


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for the device of x and casts x, which it does not do for fp64.

    Meta tensors have no autocast: torch raises an error if asked about theirs.
    """
    return x.device.type != "meta" and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)


def values(x: Tensor) -> int:
    """Count the values per channel of x [N, C, H, W]."""
    return x.numel() // x.shape[1]


def is_plain(conv: nn.Conv2d) -> bool:
    """Whether a convolution has no bias and no hooks, and pads by a number of zeros."""
    zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return type(conv) is nn.Conv2d and conv.bias is None and zeros and not has_hooks(conv)


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward or backward hooks."""
    return any(getattr(module, f"_{kind}_hooks") for kind in ("forward", "forward_pre", "backward", "backward_pre"))
