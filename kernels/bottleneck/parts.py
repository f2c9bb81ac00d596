"""What the forward, the backward and the inference pass of a bottleneck block share."""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.kernel import Norm

CONV1, CONV2, CONV3, PROJECTION = range(4)  # places in the lists of filters, weights, biases and eps


class Geometry(NamedTuple):
    """Of the convolutions: strides of the first 1x1 and of the projection, and what torch asks of the middle one."""

    first_stride: int
    projection_stride: int
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


class Kept(NamedTuple):
    """What the forward pass leaves for the backward pass besides its result, in the order of the op's results."""

    x1: Tensor  # [N, K, H, W]
    x2: Tensor  # [N, K', H', W']
    mask: Tensor  # [N, C_out / 8, H', W'] bits of the last ReLU
    y1: Tensor  # like x1; or [0], to be made again
    statistics1: Tensor  # [2, K]: mean and biased variance of x1,
    statistics2: Tensor  # [2, K']: of x2,
    statistics3: Tensor  # [2, C_out]: of conv3's result,
    statistics4: Tensor  # [2, C_out]: and of the projection's; [0] without one
    line: Tensor  # [3, K']: bn2 as mean, scale and shift
    moments: Tensor  # [2, K']: of y2, what is subtracted before products over all rows, and the mean less that
    varied: Tensor  # [C_out, K']: filters of conv3 @ covariance of y2
    z_moments: Tensor  # [2, C]: of x, as taken by the projection; [0] without one
    z_varied: Tensor  # [C_out, C]; [0] without a projection


def convolve(x: Tensor, filters: Tensor, geometry: Geometry) -> Tensor:
    """The middle convolution, channels_last."""
    _, _, stride, padding, dilation, groups = geometry
    out = torch.ops.aten.convolution(x, filters, None, stride, padding, dilation, False, [0, 0], groups)
    return channels_last(out)


def channels_last(x: Tensor) -> Tensor:
    """x itself, or a copy that is."""
    return x.contiguous(memory_format=torch.channels_last)


def norms_of(weights: list[Tensor], biases: list[Tensor], eps: list[float]) -> list[Norm]:
    """The BatchNorm behind each convolution, without running statistics."""
    return [
        Norm(weight, bias, None, None, of).contiguous() for weight, bias, of in zip(weights, biases, eps, strict=True)
    ]
