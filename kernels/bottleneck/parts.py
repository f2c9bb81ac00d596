"""Types and helpers shared by the forward, backward and inference passes of a bottleneck block."""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.kernel import Norm

CONV1, CONV2, CONV3, PROJECTION = range(4)  # places in the lists of filters, weights, biases and eps


class Geometry(NamedTuple):
    """The strides of the first 1x1 convolution and of the projection, and torch's arguments for the middle one."""

    first_stride: int
    projection_stride: int
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


class Kept(NamedTuple):
    """Tensors that the forward pass saves for the backward pass, in the order in which the op returns them."""

    x1: Tensor  # [N, K, H, W]
    x2: Tensor  # [N, K', H', W']
    mask: Tensor  # [N, C_out / 8, H', W'] bits of the last ReLU
    y1: Tensor  # like x1; or [0], to be recomputed
    statistics1: Tensor  # [2, K]: mean and biased variance of x1
    statistics2: Tensor  # [2, K']: of x2
    statistics3: Tensor  # [2, C_out]: of conv3's result
    statistics4: Tensor  # [2, C_out]: of the projection's result; [0] without one
    line: Tensor  # [3, K']: bn2 as mean, scale and shift
    moments: Tensor  # [2, K']: the centre of y2, and its mean less the centre; see `kernels.gram.covariance`
    varied: Tensor  # [C_out, K']: filters of conv3 @ covariance of y2
    z_moments: Tensor  # [2, C]: likewise of x, as taken by the projection; [0] without one
    z_varied: Tensor  # [C_out, C]: likewise; [0] without a projection


def convolve(x: Tensor, filters: Tensor, geometry: Geometry) -> Tensor:
    """Compute the middle convolution, channels_last."""
    _, _, stride, padding, dilation, groups = geometry
    out = torch.ops.aten.convolution(x, filters, None, stride, padding, dilation, False, [0, 0], groups)
    return channels_last(out)


def channels_last(x: Tensor) -> Tensor:
    """Return x, copied if it is not channels_last."""
    return x.contiguous(memory_format=torch.channels_last)


def norms_of(weights: list[Tensor], biases: list[Tensor], eps: list[float]) -> list[Norm]:
    """Return the BatchNorm after each convolution, without running statistics."""
    return [
        Norm(weight, bias, None, None, value).contiguous()
        for weight, bias, value in zip(weights, biases, eps, strict=True)
    ]
