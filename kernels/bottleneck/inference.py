"""A bottleneck block with fixed statistics: two products and one convolution, BatchNorm a part of each.

    y1 = relu(bn1(conv1x1(x))),  x2 = conv2(y1),  out = relu(bn3(conv1x1(relu(bn2(x2)))) + shortcut)

`kernels.products.block_end` for the products, the second with bn2 and its ReLU on the way in and the shortcut,
projected or not, on the way out; conv2 is cuDNN's. Filters are multiplied as they are: a BatchNorm is a line behind
them, in fp32, so that nothing is rounded that eager does not round.

Moves (identity): R x, W y1; R y1, W x2; R x2, R x, W out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.bottleneck.parts import CONV1, CONV2, CONV3, PROJECTION, Geometry, channels_last, convolve
from kernels.kernel import Norm
from kernels.launch.layout import Matrix
from kernels.launch.runtime import triton_op
from kernels.products.block_end import Branch, block_end
from kernels.products.plans import require_products


@triton_op("resbench::bottleneck_inference", opaque=True)
def _bottleneck_inference(
    x: Tensor,
    filters: list[Tensor],
    lines: list[Tensor],
    first_stride: int,
    projection_stride: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    require_products(x)
    x = channels_last(x)
    multiplied = [of.to(x.dtype) for of in filters]
    first, last = multiplied[CONV1].contiguous(), multiplied[CONV3].contiguous()
    y1, _ = block_end(Branch(x, first_stride, None, first, lines[CONV1]), None, None)
    geometry = Geometry(first_stride, projection_stride, stride, padding, dilation, groups)
    x2 = convolve(y1, multiplied[CONV2], geometry)
    projection = None
    if len(filters) > PROJECTION:
        z_filters = multiplied[PROJECTION].contiguous()
        projection = Branch(x, projection_stride, None, z_filters, lines[PROJECTION])
    branch = Branch(x2, 1, lines[CONV2], last, lines[CONV3])
    out, _ = block_end(branch, projection, x if projection is None else None)
    return out


def bottleneck_inference(x: Tensor, filters: Sequence[Tensor], lines: Sequence[Tensor], geometry: Geometry) -> Tensor:
    """A bottleneck block in evaluation mode, without gradients.

    Args:
        x: [N, C, H, W], fp16, bf16, fp32, or in the interpreter fp64; channels_last, or it is copied. Not empty.
        filters: as of `kernels.bottleneck.forward.bottleneck`.
        lines: of the BatchNorm behind each, see `norm_line`.
        geometry: of the convolutions.

    Returns:
        out [N, C_out, H', W'], channels_last.

    Raises:
        RuntimeError: kernels that cannot run here.
    """
    out: Tensor = _bottleneck_inference(x, list(filters), list(lines), *geometry)
    return out


def norm_line(norm: Norm, x: Tensor) -> Tensor:
    """A BatchNorm with its running statistics as [3, C]: mean, scale and shift, in the precision of sums over x."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018 - the caller's to see to
    assert norm.weight is not None and norm.bias is not None and norm.eps is not None  # noqa: S101, PT018
    sums = Matrix.of(x).sums
    scale = norm.weight.to(sums) * torch.rsqrt(norm.running_var.to(sums) + norm.eps)
    return torch.stack((norm.running_mean.to(sums), scale, norm.bias.to(sums)))
