"""BatchNorm, ReLU and the convolution that follows as one autograd node that does not save the tensor between them.

    out = conv(relu(bn(x)))

Autograd saves y = relu(bn(x)) for the gradient of the convolution's weight. Here only x is saved, which the BatchNorm
needs anyway, and the backward pass recomputes y from it: one more read of x and write of y, one tensor less in memory.
Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016), without recomputing convolutions. The convolutions
are cuDNN's.
"""

from typing import Any

import torch
from torch import Tensor, nn

from kernels.batch_norm.act import bn_act_forward
from kernels.batch_norm.backward import bn_backward
from kernels.kernel import Norm, require_fitting
from kernels.launch.autograd import absent, differentiable, differentiable_once, present, save_for_backward
from kernels.launch.runtime import triton_op

_NOT_TRANSPOSED = (False, [0, 0])  # and no output padding


@triton_op("resbench::bn_act_conv")
def _bn_act_conv(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    filters: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    training: bool,
) -> tuple[Tensor, Tensor]:
    norm = Norm(weight, bias, running_mean, running_var, eps)
    y, statistics, _ = bn_act_forward(x, None, norm, None, training=training, relu=True)
    out = torch.ops.aten.convolution(y, filters, None, stride, padding, dilation, *_NOT_TRANSPOSED, groups)
    return out, statistics


@triton_op("resbench::bn_act_conv_backward")
def _bn_act_conv_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    statistics: Tensor,
    filters: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    norm = Norm(weight, bias, statistics[0], statistics[1], eps)
    y, _, _ = bn_act_forward(x, None, norm, None, training=False, relu=True)  # equal bit for bit: the same statistics
    dy, dfilters, _ = torch.ops.aten.convolution_backward(
        dout, y, filters, None, stride, padding, dilation, *_NOT_TRANSPOSED, groups, [True, True, False]
    )
    gradients = bn_backward(dy, x, None, norm, None, statistics, None, training=training, activation="from x")
    return gradients.x, present(gradients.weight, x), present(gradients.bias, x), dfilters


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401 - torch's
    x, weight, bias, _, _, ctx.eps, filters, *ctx.convolution, ctx.training = inputs
    save_for_backward(ctx, output, x, weight, bias, filters)


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
    x, weight, bias, filters, statistics = ctx.saved_tensors
    dx, *parameters, dfilters = _bn_act_conv_backward(
        dout, x, weight, bias, ctx.eps, statistics, filters, *ctx.convolution, ctx.training
    )
    return dx, *absent(parameters, (weight, bias)), None, None, None, dfilters, None, None, None, None, None


differentiable(_bn_act_conv, _differentiate, _setup)
differentiable_once(_bn_act_conv_backward)


def bn_act_conv(x: Tensor, norm: Norm, conv: nn.Conv2d, filters: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
    """conv(relu(bn(x))) without bias, differentiable once, which keeps x alone for the backward pass.

    What the convolution takes is made again from x in backward: Chen et al., "Training Deep Nets with Sublinear Memory
    Cost" (2016). The BatchNorm is that of `bn_act`, and the convolution is PyTorch's.

    Args:
        x: [N, C, H, W], fp16, bf16, fp32 or fp64, not empty.
        norm: its BatchNorm. Running statistics are ignored in training, and never updated here:
            `resnet.FusedBatchNormAct2d.into` does that as well.
        conv: gives stride, padding, dilation and groups; without bias, padded by a number of zeros.
        filters: its weight [C_out, C / groups, KH, KW] in the dtype of x.
        training: normalise by the statistics of the batch, otherwise by the running statistics.

    Returns:
        out: [N, C_out, H_out, W_out], in the dtype of x.
        statistics: [2, C], in fp32 (fp64 where x is fp64), without a gradient: mean and biased variance that x was
            normalised by.

    Raises:
        ValueError: x is not 4D, is empty, or has one value a channel in training; `eps` may divide by zero; or a
            convolution with a bias or another padding.
        NotImplementedError: x has another dtype.
        RuntimeError: tensors that do not fit each other; evaluation without running statistics; kernels that cannot
            run here; or a second derivative is asked for.

    Examples:
        >>> import torch
        >>> from kernels import Norm, bn_act_conv
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU interpreted, and slow
        >>> x = torch.randn(2, 8, 4, 4, device=device)
        >>> norm = Norm(torch.ones(8, device=device), torch.zeros(8, device=device), None, None, 1e-5)
        >>> conv = torch.nn.Conv2d(8, 16, kernel_size=3, padding=1, bias=False, device=device)
        >>> out, statistics = bn_act_conv(x, norm, conv, conv.weight, training=True)
        >>> out.shape, statistics.shape
        (torch.Size([2, 16, 4, 4]), torch.Size([2, 8]))
    """
    require_fitting(x, norm, training=training)
    if x.numel() == 0:
        raise ValueError(f"bn_act_conv takes no empty input ({list(x.shape)}): call conv(bn_act(...)[0])")
    if conv.bias is not None or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError(
            f"bn_act_conv takes convolutions without bias, padded by a number of zeros, not {conv}: "
            "call conv(bn_act(...)[0])"
        )
    geometry = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
    out: Tensor
    out, statistics = _bn_act_conv(x, *norm, filters, *geometry, training)
    return out, statistics
