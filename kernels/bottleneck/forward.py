"""A bottleneck block in training as one autograd node, which never writes its widest tensors.

    x1 = conv1x1(x),  y1 = relu(bn1(x1)),  x2 = conv2(y1),  y2 = relu(bn2(x2))
    out = relu(bn3(conv1x1(y2)) + x)                    "identity"
    out = relu(bn3(conv1x1(y2)) + bn4(conv1x1(x)))      "projection"

The results of the last convolution and of the projection are never written, forward or backward, nor is y2: the
statistics of a 1x1 convolution come from the covariance of its input (`kernels.gram.covariance`), and the backward pass
of its BatchNorm from products over all rows (`kernels.gram.backward`). Saved for the backward pass: x, x1, x2, a mask
of one bit per element, and vectors; y1 too if `keep` is set, otherwise it is recomputed. conv2 is cuDNN's.

The touches of one training step, for tensors with rows; those of the widest tensors (x and out, 4 times the others) are
marked by (1):

    conv_statistics    conv1, bn1's statistics        R x (1), W x1
    bn_act             bn1, relu                      R x1, W y1
    convolution        conv2                          R y1, W x2
    batch_statistics   bn2                            R x2
    gram               bn3's statistics               R x2
    block_end          bn2, conv3, bn3, shortcut      R x2, R x (1), W out (1), W mask
    filter_gradient    P                              R dout (1), R mask, R x2
    inner_gradient     conv3, bn3, bn2's sums         R dout (1), R mask, R x2, W g2
    bn_backward        bn2                            R g2, R x2, W dx2
    convolution        conv2                          R dx2 twice, R y1, W dy1
    bn_backward        bn1                            R dy1 twice, R x1 twice, W dx1
    input_gradient     conv1, shortcut                R dx1, R dout (1), R mask, W dx (1)
    filter_gradient    conv1                          R dx1, R x (1)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.batch_norm.act import bn_act_forward
from kernels.batch_norm.statistics import partial_statistics
from kernels.bottleneck.backward import bottleneck_backward
from kernels.bottleneck.parts import CONV1, CONV2, CONV3, PROJECTION, Geometry, Kept, channels_last, convolve, norms_of
from kernels.gram.covariance import gram_source
from kernels.gram.statistics import result_statistics
from kernels.kernel import Norm
from kernels.launch.autograd import absent, present
from kernels.launch.layout import Matrix
from kernels.launch.runtime import triton_op
from kernels.products.block_end import Branch, block_end
from kernels.products.conv_statistics import conv_statistics
from kernels.products.plans import require_products


@triton_op("resbench::bottleneck", opaque=True)
def _bottleneck(
    x: Tensor,
    filters: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    eps: list[float],
    first_stride: int,
    projection_stride: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    keep: bool,
    differentiated: bool,
) -> list[Tensor]:
    require_products(x)
    x = channels_last(x)
    geometry = Geometry(first_stride, projection_stride, stride, padding, dilation, groups)
    norms = norms_of(weights, biases, eps)
    multiplied = [tensor.to(x.dtype) for tensor in filters]
    x1, partials, rows_per_part = conv_statistics(x, multiplied[CONV1].contiguous(), first_stride)
    x1_partials = (partials, rows_per_part)
    y1, statistics1, _ = bn_act_forward(x1, None, norms[CONV1], None, training=True, relu=True, x_partials=x1_partials)
    x2 = convolve(y1, multiplied[CONV2], geometry)
    partials, rows_per_part = partial_statistics(x2, None, Matrix.of(x2))
    source, covariance, statistics2 = gram_source(x2, 1, norms[CONV2], partials, rows_per_part)
    assert source.line is not None and statistics2 is not None  # noqa: S101, PT018 - it has a norm
    last = multiplied[CONV3].contiguous()
    results = result_statistics(source, covariance, last, norms[CONV3])
    branch = Branch(x2, 1, source.line, last, results.line)
    projection, statistics4, z_moments, z_varied = None, None, None, None
    if len(filters) > PROJECTION:
        z_source, z_covariance, _ = gram_source(x, projection_stride, None, None, 0)
        z_filters, z_moments = multiplied[PROJECTION].contiguous(), z_source.moments
        statistics4, line, z_varied = result_statistics(z_source, z_covariance, z_filters, norms[PROJECTION])
        projection = Branch(x, projection_stride, None, z_filters, line)
    shortcut = x if projection is None else None
    out, mask = block_end(branch, projection, shortcut, with_mask=differentiated)
    kept = Kept(
        x1, x2, present(mask, x), present(y1 if keep else None, x),
        statistics1, statistics2, results.statistics, present(statistics4, covariance),
        source.line, source.moments, results.varied, present(z_moments, covariance), present(z_varied, covariance),
    )  # fmt: skip
    return [out, *kept]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:  # noqa: ANN401 - torch's
    x, filters, weights, biases, ctx.eps, *geometry, _, _ = inputs
    ctx.geometry, ctx.number = geometry, len(filters)
    _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *filters, *weights, *biases, *kept)


def _differentiate(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:  # noqa: ANN401 - torch's
    dout, number = gradients[0], ctx.number
    if dout is None:
        return None, *([None] * number for _ in range(3)), *(None,) * 9
    x, *tensors = ctx.saved_tensors
    groups = [tensors[start : start + number] for start in range(0, 3 * number, number)]
    kept = tensors[3 * number :]
    needs_grad = [ctx.needs_input_grad[0], *(bool(needed) for group in ctx.needs_input_grad[1:4] for needed in group)]
    outputs = bottleneck_backward(dout, x, *groups, kept, ctx.eps, *ctx.geometry, needs_grad)
    dx, *rest = absent(outputs, [needed or None for needed in needs_grad])
    return dx, *(list(rest[start : start + number]) for start in range(0, 3 * number, number)), *(None,) * 9


_bottleneck.register_autograd(_differentiate, setup_context=_setup)


def bottleneck(
    x: Tensor,
    filters: Sequence[Tensor],
    norms: Sequence[Norm],
    geometry: Geometry,
    *,
    keep: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Run a bottleneck block in training mode, differentiable once.

    Args:
        x: [N, C, H, W], fp16, bf16, fp32, or in the interpreter fp64; copied if it is not channels_last. Not empty.
        filters: of conv1 [K, C, 1, 1], conv2 [K', K / groups, KH, KW], conv3 [C_out, K', 1, 1], and of the projection
            [C_out, C, 1, 1] if there is one. In any precision: they are multiplied in that of x, and their gradients
            have their own.
        norms: the BatchNorm after each, with weight and bias. Running statistics are ignored.
        geometry: of the convolutions.
        keep: save the input of conv2 for the backward pass, instead of recomputing it there.

    Returns:
        out [N, C_out, H', W'], channels_last, and for each of the norms the mean and biased variance [2, K] of its
        input.

    Raises:
        RuntimeError: kernels cannot run here.
    """
    weights, biases = [norm.weight for norm in norms], [norm.bias for norm in norms]
    inputs = (x, *filters, *weights, *biases)
    differentiated = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    eps = [norm.eps for norm in norms]
    out, *rest = _bottleneck(x, list(filters), weights, biases, eps, *geometry, keep, differentiated)
    kept = Kept(*rest)
    statistics = [kept.statistics1, kept.statistics2, kept.statistics3, kept.statistics4]
    return out, statistics[: len(filters)]
