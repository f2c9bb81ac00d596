"""The ends of blocks with fixed statistics, as ops of torch; the caller prepares all constants once.

`block_product` is `kernels.products.block_end.block_end`, for any 1x1 convolution with its BatchNorm; `block_chained`
is `kernels.products.block_chain.block_chain`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.bottleneck.parts import channels_last
from kernels.launch.runtime import triton_op
from kernels.products.block_chain import block_chain
from kernels.products.block_end import Branch, block_end
from kernels.products.plans import require_products


class Constants(NamedTuple):
    """The constants of a 1x1 convolution and the BatchNorm that follows it."""

    filters: Tensor  # [N, K, 1, 1], contiguous
    line: Tensor  # [3, N]: mean, scale and shift of the result, in the precision of sums
    stride: int


def block_product(
    x: Tensor,
    constants: Constants,
    line: Tensor | None = None,
    shortcut: Tensor | None = None,
    projection: Constants | None = None,
    *,
    relu: bool = True,
) -> Tensor:
    """Compute bn(conv1x1(y)) + shortcut, with a ReLU at the end if `relu` is set.

    Args:
        x: [N, C, H, W] in the dtype of the filters.
        constants: of the convolution and BatchNorm of x.
        line: [3, C] of a BatchNorm: y is relu(bn(x)). None: y is x.
        shortcut: like the result; with a `projection`, the input of the projection.
        projection: its constants, if the shortcut is projected.
        relu: apply a ReLU at the end.

    Returns:
        out [N, C_out, H_out, W_out], channels_last.

    Raises:
        RuntimeError: kernels cannot run here.
    """
    filters, result_line, stride = constants
    z_filters, z_line, z_stride = projection or _NONE
    out: Tensor = _block_product(x, line, filters, result_line, stride, shortcut, z_filters, z_line, z_stride, relu)
    return out


def block_chained(
    x: Tensor,
    constants: Constants,
    line: Tensor | None,
    shortcut: Tensor,
    projection: Constants | None,
    following: Constants,
) -> tuple[Tensor, Tensor]:
    """Compute out = relu(block_product(...)), and relu(bn'(conv1x1'(out))) of the next block; see `chainable`.

    Raises:
        RuntimeError: kernels cannot run here.
    """
    filters, result_line, _ = constants
    z_filters, z_line, z_stride = projection or _NONE
    out: Tensor
    y: Tensor
    out, y = _block_chained(
        x, line, filters, result_line, shortcut, z_filters, z_line, z_stride, following.filters, following.line
    )
    return out, y


_NONE = (None, None, 1)


@triton_op("resbench::block_product", opaque=True)
def _block_product(
    x: Tensor,
    line: Tensor | None,
    filters: Tensor,
    result_line: Tensor,
    stride: int,
    shortcut: Tensor | None,
    z_filters: Tensor | None,
    z_line: Tensor | None,
    z_stride: int,
    relu: bool,
) -> Tensor:
    require_products(x)
    z, shortcut = _shortcut(shortcut, z_filters, z_line, z_stride)
    out, _ = block_end(Branch(channels_last(x), stride, line, filters, result_line), z, shortcut, relu=relu)
    return out


@triton_op("resbench::block_chained", opaque=True)
def _block_chained(
    x: Tensor,
    line: Tensor | None,
    filters: Tensor,
    result_line: Tensor,
    shortcut: Tensor,
    z_filters: Tensor | None,
    z_line: Tensor | None,
    z_stride: int,
    next_filters: Tensor,
    next_line: Tensor,
) -> tuple[Tensor, Tensor]:
    require_products(x)
    z, identity = _shortcut(shortcut, z_filters, z_line, z_stride)
    return block_chain(Branch(channels_last(x), 1, line, filters, result_line), z, identity, next_filters, next_line)


def _shortcut(
    shortcut: Tensor | None, filters: Tensor | None, line: Tensor | None, stride: int
) -> tuple[Branch | None, Tensor | None]:
    """Return the arguments z and shortcut of `block_end`: one of them is None."""
    if shortcut is None or filters is None or line is None:
        return None, None if shortcut is None else channels_last(shortcut)
    return Branch(channels_last(shortcut), stride, None, filters, line), None


def line_of(mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return a BatchNorm with fixed statistics as [3, C]: mean, scale and shift, in fp64."""
    scale = torch.rsqrt(var.double() + eps) * (1.0 if weight is None else weight.double())
    return torch.stack((mean.double(), scale, torch.zeros_like(scale) if bias is None else bias.double()))
