"""A bottleneck block with fixed statistics: two products and one convolution, each with its BatchNorm fused.

    y1 = relu(bn1(conv1x1(x))),  x2 = conv2(y1),  out = relu(bn3(conv1x1(relu(bn2(x2)))) + shortcut)

The products are `kernels.products.block_end`; the second applies bn2 and its ReLU to its input, and adds the shortcut,
projected or not, to its result. conv2 is cuDNN's. Filters are not scaled: a BatchNorm is applied to the product as a
line, in fp32, so that nothing is rounded that eager does not round.

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
    multiplied = [tensor.to(x.dtype) for tensor in filters]
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
    """Run a bottleneck block in evaluation mode, without gradients.

    Args:
        x: [N, C, H, W], fp16, bf16, fp32, or in the interpreter fp64; copied if it is not channels_last. Not empty.
        filters: as for `kernels.bottleneck.forward.bottleneck`.
        lines: the BatchNorm after each, see `norm_line`.
        geometry: of the convolutions.

    Returns:
        out [N, C_out, H', W'], channels_last.

    Raises:
        RuntimeError: kernels cannot run here.
    """
    out: Tensor = _bottleneck_inference(x, list(filters), list(lines), *geometry)
    return out


def norm_line(norm: Norm, x: Tensor) -> Tensor:
    """Return a BatchNorm with its running statistics as [3, C]: mean, scale and shift, in the dtype of sums over x."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018 - checked by the caller
    assert norm.weight is not None and norm.bias is not None and norm.eps is not None  # noqa: S101, PT018
    sums = Matrix.of(x).sums
    scale = norm.weight.to(sums) * torch.rsqrt(norm.running_var.to(sums) + norm.eps)
    return torch.stack((norm.running_mean.to(sums), scale, norm.bias.to(sums)))
