"""What ends blocks with fixed statistics, as ops of torch: every constant is prepared by the caller, once.

`block_product` is `kernels.products.block_end.block_end`, of any 1x1 convolution with its BatchNorm; `block_chained` is
`kernels.products.block_chain.block_chain`.
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
    """Of a 1x1 convolution and the BatchNorm behind it."""

    filters: Tensor  # [N, K, 1, 1], contiguous
    line: Tensor  # [3, N]: mean, scale and shift of the result, in the precision of sums
    stride: int


def block_product(
    x: Tensor,
    of_x: Constants,
    line: Tensor | None = None,
    shortcut: Tensor | None = None,
    of_z: Constants | None = None,
    *,
    relu: bool = True,
) -> Tensor:
    """bn(conv1x1(y)) + shortcut, behind a ReLU where one is asked for.

    Args:
        x: [N, C, H, W] in the dtype of the filters.
        of_x: of its convolution.
        line: [3, C] of a BatchNorm: y is relu(bn(x)). None: y is x.
        shortcut: like the result; or with `of_z` what is projected.
        of_z: of the projection.
        relu: whether there is one at the end.

    Returns:
        out [N, C_out, H_out, W_out], channels_last.

    Raises:
        RuntimeError: kernels that cannot run here.
    """
    filters, result_line, stride = of_x
    z_filters, z_line, z_stride = of_z or _NONE
    out: Tensor = _block_product(x, line, filters, result_line, stride, shortcut, z_filters, z_line, z_stride, relu)
    return out


def block_chained(
    x: Tensor, of_x: Constants, line: Tensor | None, shortcut: Tensor, of_z: Constants | None, following: Constants
) -> tuple[Tensor, Tensor]:
    """The same behind a ReLU, and relu(bn'(conv1x1'(that))) of the next block; what of it can be, `chainable` says.

    Raises:
        RuntimeError: kernels that cannot run here.
    """
    filters, result_line, _ = of_x
    z_filters, z_line, z_stride = of_z or _NONE
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
    z, as_it_is = _shortcut(shortcut, z_filters, z_line, z_stride)
    return block_chain(Branch(channels_last(x), 1, line, filters, result_line), z, as_it_is, next_filters, next_line)


def _shortcut(
    shortcut: Tensor | None, filters: Tensor | None, line: Tensor | None, stride: int
) -> tuple[Branch | None, Tensor | None]:
    """As `block_end` takes it: projected, or as it is."""
    if shortcut is None or filters is None or line is None:
        return None, None if shortcut is None else channels_last(shortcut)
    return Branch(channels_last(shortcut), stride, None, filters, line), None


def line_of(mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """A BatchNorm with fixed statistics as [3, C], in fp64."""
    scale = torch.rsqrt(var.double() + eps) * (1.0 if weight is None else weight.double())
    return torch.stack((mean.double(), scale, torch.zeros_like(scale) if bias is None else bias.double()))
