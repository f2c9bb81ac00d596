"""BatchNorm with its ReLU and its residual add in one op: forward and backward, training and evaluation.

    y = act(bn(x))                 "bn", "bn+relu"
    y = act(bn(x) + z)             "bn+residual+relu": the end of a block
    y = relu(bn_x(x) + bn_z(z))    "dual": the end of a block whose shortcut is projected

Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1, and the gradients of section 3. Everything is computed in
fp32 (fp64 for fp64 tensors) and rounded once, when y is written.

Touches (reads and writes of a tensor of x's size; one is 2 bytes per element in bf16) and launches:

    form               training forward    training backward        evaluation forward, backward
    bn, bn+relu        R x, R x, W y   3   R dy x, R dy x W dx   5  R x, W y     2   R dy x, W dx        3
    bn+residual+relu   R x, R x z W y  4   R dy x W dz,          6  R x z, W y   3   R dy x, W dz dx     4
                                           R dz x W dx
    dual               R x z,          5   R dy x z,             8  R x z, W y   3   R dy x z, W dx dz   5
                       R x z W y           R dy x z W dx dz
    launches           2                   2                        1            1 and a sum over programs

The end of a block saves its ReLU mask as one bit per element (1/16 touch in bf16 each time). Elsewhere the backward
pass recomputes the mask from x, with the operations, order and rounding of the forward pass, so that y is not saved.
Second passes walk every run of rows backwards: what the first pass read last is still in L2. Running statistics are not
updated here (`kernels.batch_norm.statistics` does it, in one launch): an op that autograd differentiates may not modify
its inputs.
"""

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from kernels.batch_norm.backward import Activation, bn_backward
from kernels.batch_norm.normalise import branch, kept, normalised
from kernels.batch_norm.statistics import partial_statistics
from kernels.kernel import NO_NORM, Kernel, Norm, Operands, plain_batch_norm, require_fitting
from kernels.launch.autograd import absent, differentiable, differentiable_once, present, save_for_backward
from kernels.launch.layout import Matrix, dense, empty_laid_out_like, laid_out_like
from kernels.launch.passes import launch
from kernels.launch.runtime import require_runnable, triton_op, wrap_triton
from kernels.launch.tiles import pack_bits, tile_offsets


@triton.jit
def _apply(
    y_ptr,  # [rows, C], written
    mask_ptr,  # [rows, ceil(C / 8)] bits of the ReLU, written; or None
    statistics_ptr,  # [2, C] or for dual [4, C]: mean and biased variance of x, then of z; written
    x_ptr,  # [rows, C]
    z_ptr,  # [rows, C], or None
    partials_ptr,  # [1 or 2, 2, parts, C] in training, else None
    running_mean_ptr, running_var_ptr, weight_ptr, bias_ptr,  # [C] or None
    z_running_mean_ptr, z_running_var_ptr, z_weight_ptr, z_bias_ptr,  # [C] or None, of z's BatchNorm
    rows, C, HW, rows_per_run, rows_per_part, parts,
    EPS: tl.constexpr, Z_EPS: tl.constexpr,  # Z_EPS None: z is added as it is
    RELU: tl.constexpr, LAYOUT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    acc = statistics_ptr.dtype.element_ty
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    valid = channels < C
    mean, scale, shift = branch(
        partials_ptr, running_mean_ptr, running_var_ptr, weight_ptr, bias_ptr, statistics_ptr, channels,
        rows, C, rows_per_part, parts, EPS,
    )  # fmt: skip
    if Z_EPS is not None:
        z_partials_ptr = partials_ptr
        if partials_ptr is not None:
            z_partials_ptr = partials_ptr + 2 * tl.cast(parts, tl.int64) * C
        z_mean, z_scale, z_shift = branch(
            z_partials_ptr, z_running_mean_ptr, z_running_var_ptr, z_weight_ptr, z_bias_ptr, statistics_ptr + 2 * C,
            channels, rows, C, rows_per_part, parts, Z_EPS,
        )  # fmt: skip
    tile = tl.arange(0, BLOCK_ROWS)
    first = tl.program_id(0).to(tl.int64) * rows_per_run
    last = tl.minimum(first + rows_per_run, rows)
    tiles = tl.cdiv(last - first, BLOCK_ROWS)
    for step in range(tiles):
        start = first + (tiles - 1 - step) * BLOCK_ROWS
        inside_rows = start + tile < last
        inside = inside_rows[:, None] & valid[None, :]
        offsets = tile_offsets(start, tile, channels, C, HW, LAYOUT)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0, eviction_policy="evict_first").to(acc)
        y = normalised(x, mean, scale, shift)
        if z_ptr is not None:
            z = tl.load(z_ptr + offsets, mask=inside, other=0.0, eviction_policy="evict_first").to(acc)
            if Z_EPS is not None:
                z = normalised(z, z_mean, z_scale, z_shift)
            y += z
        y = y.to(y_ptr.dtype.element_ty)
        if RELU:
            active = kept(y)
            y = tl.where(active, y, 0.0)
            if mask_ptr is not None:
                packed = tl.program_id(1) * (BLOCK_CHANNELS // 8) + tl.arange(0, BLOCK_CHANNELS // 8)
                valid_bytes = inside_rows[:, None] & (packed < tl.cdiv(C, 8))[None, :]
                bits = pack_bits(active, BLOCK_ROWS, BLOCK_CHANNELS)
                mask_offsets = tile_offsets(start, tile, packed, tl.cdiv(C, 8), HW, LAYOUT)
                tl.store(mask_ptr + mask_offsets, bits, mask=valid_bytes)
        tl.store(y_ptr + offsets, y, mask=inside)


def bn_act_forward(
    x: Tensor,
    z: Tensor | None,
    norm: Norm,
    z_norm: Norm | None,
    *,
    training: bool,
    relu: bool,
    x_partials: tuple[Tensor, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y like x, statistics [2 or 4, C], and the mask [N, ceil(C / 8), H, W] of bytes, or [0] if it has none.

    In training `x_partials` may be the partial statistics of x and the rows of a part, otherwise they are taken here.
    """
    require_runnable(x.device)
    x = dense(x)
    z = None if z is None else laid_out_like(z, x)
    norm, second = norm.contiguous(), (z_norm or NO_NORM).contiguous()
    matrix = Matrix.of(x)
    y, mask = torch.empty_like(x), _empty_mask(x) if z is not None and relu else None
    statistics = x.new_empty((2 if z_norm is None else 4, matrix.channels), dtype=matrix.sums)
    partials, rows_per_part = None, 0
    if training:
        partials, rows_per_part = x_partials or partial_statistics(x, z if z_norm else None, matrix)
    plan = launch("apply" if z_norm is None else "apply dual", matrix)
    wrap_triton(_apply)[plan.grid](
        y, mask, statistics, x, z, partials,
        norm.running_mean, norm.running_var, norm.weight, norm.bias,
        second.running_mean, second.running_var, second.weight, second.bias,
        matrix.rows, matrix.channels, matrix.pixels, plan.rows_per_run,
        rows_per_part, 0 if partials is None else partials.shape[2],
        EPS=norm.eps, Z_EPS=second.eps, RELU=relu, LAYOUT=matrix.layout,
        BLOCK_ROWS=plan.block_rows, BLOCK_CHANNELS=plan.block_channels, num_warps=plan.num_warps,
    )  # fmt: skip
    return y, statistics, present(mask, x)


def _empty_mask(x: Tensor) -> Tensor:
    """Allocate a mask [N, ceil(C / 8), H, W] of bytes in the memory format of dense x."""
    n, channels, height, width = x.shape
    shape = (n, (channels + 7) // 8, height, width)
    return empty_laid_out_like(x, shape, torch.uint8)


@triton_op("resbench::bn_act")
def _bn_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    z: Tensor | None,
    training: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    norm = Norm(weight, bias, running_mean, running_var, eps)
    return bn_act_forward(x, z, norm, None, training=training, relu=relu)


@triton_op("resbench::bn_act_backward")
def _bn_act_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    statistics: Tensor,
    mask: Tensor,
    training: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    norm = Norm(weight, bias, None, None, eps)
    bits, activation = _activation(mask, relu)
    gradients = bn_backward(dy, x, None, norm, None, statistics, bits, training=training, activation=activation)
    return gradients.x, present(gradients.z, x), present(gradients.weight, x), present(gradients.bias, x)


@triton_op("resbench::bn_act_dual")
def _bn_act_dual(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    z: Tensor,
    z_weight: Tensor | None,
    z_bias: Tensor | None,
    z_running_mean: Tensor | None,
    z_running_var: Tensor | None,
    z_eps: float,
    training: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    norm = Norm(weight, bias, running_mean, running_var, eps)
    z_norm = Norm(z_weight, z_bias, z_running_mean, z_running_var, z_eps)
    return bn_act_forward(x, z, norm, z_norm, training=training, relu=relu)


@triton_op("resbench::bn_act_dual_backward")
def _bn_act_dual_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    z: Tensor,
    z_weight: Tensor | None,
    z_bias: Tensor | None,
    z_eps: float,
    statistics: Tensor,
    mask: Tensor,
    training: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    norm, z_norm = Norm(weight, bias, None, None, eps), Norm(z_weight, z_bias, None, None, z_eps)
    bits, activation = _activation(mask, relu)
    gradients = bn_backward(dy, x, z, norm, z_norm, statistics, bits, training=training, activation=activation)
    dx, dz, dweight, dbias, dz_weight, dz_bias = (present(gradient, x) for gradient in gradients)
    return dx, dz, dweight, dbias, dz_weight, dz_bias


def _activation(mask: Tensor, relu: bool) -> tuple[Tensor | None, Activation]:
    """Return the mask of the forward pass, if it saved one, and the activation to differentiate."""
    if not relu:
        return None, "none"
    return (mask, "bits") if mask.numel() else (None, "from x")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ANN401 - torch's
    x, weight, bias, _, _, ctx.eps, z, ctx.training, ctx.relu = inputs
    ctx.has_residual = z is not None
    save_for_backward(ctx, output, x, weight, bias)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
    x, weight, bias, statistics, mask = ctx.saved_tensors
    dx, dz, *parameters = _bn_act_backward(dy, x, weight, bias, ctx.eps, statistics, mask, ctx.training, ctx.relu)
    residual = (dz if ctx.relu else dy) if ctx.has_residual else None
    return dx, *absent(parameters, (weight, bias)), None, None, None, residual, None, None


def _setup_dual(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ANN401 - torch's
    x, weight, bias, _, _, ctx.eps, z, z_weight, z_bias, _, _, ctx.z_eps, ctx.training, ctx.relu = inputs
    save_for_backward(ctx, output, x, weight, bias, z, z_weight, z_bias)


def _differentiate_dual(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
    x, weight, bias, z, z_weight, z_bias, statistics, mask = ctx.saved_tensors
    dx, dz, *parameters = _bn_act_dual_backward(
        dy, x, weight, bias, ctx.eps, z, z_weight, z_bias, ctx.z_eps, statistics, mask, ctx.training, ctx.relu
    )
    norm_gradients, z_norm_gradients = (
        absent(parameters[:2], (weight, bias)),
        absent(parameters[2:], (z_weight, z_bias)),
    )
    return dx, *norm_gradients, None, None, None, dz, *z_norm_gradients, None, None, None, None, None


differentiable(_bn_act, _differentiate, _setup)
differentiable(_bn_act_dual, _differentiate_dual, _setup_dual)
differentiable_once(_bn_act_backward)
differentiable_once(_bn_act_dual_backward)


def bn_act(
    x: Tensor, norm: Norm, z: Tensor | None = None, z_norm: Norm | None = None, *, training: bool, relu: bool = True
) -> tuple[Tensor, Tensor]:
    """Compute act(bn(x)), act(bn(x) + z) or act(bn(x) + bn_z(z)), differentiable once.

    The maths is that of Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1, and the gradients of their
    section 3. Everything is computed in fp32 (fp64 where x is fp64) and rounded once, when y is written.

    Args:
        x: [N, C, H, W], fp16, bf16, fp32 or fp64.
        norm: its BatchNorm. Running statistics are ignored in training, and never updated here:
            `resnet.FusedBatchNormAct2d` does that as well.
        z: [N, C, H, W], or a shape that broadcasts to it; another dtype is converted to x's.
        z_norm: the BatchNorm of z, if it has one. It is ignored without z.
        training: normalise by the statistics of the batch, otherwise by the running statistics.
        relu: apply a ReLU at the end.

    Returns:
        y: like x.
        statistics: [2, C], or [4, C] with z_norm, in fp32 (fp64 where x is fp64), without a gradient: mean and biased
            variance that x, then z, was normalised by; undefined where x is empty.

    Raises:
        ValueError: x is not 4D, has one value a channel in training, or an `eps` may divide by zero.
        NotImplementedError: x has another dtype.
        RuntimeError: tensors that do not fit each other; evaluation without running statistics; kernels that cannot
            run here; or a second derivative is asked for.

    Examples:
        >>> import torch
        >>> from kernels import Norm, bn_act
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU interpreted, and slow
        >>> x = torch.randn(2, 8, 4, 4, device=device)
        >>> norm = Norm(torch.ones(8, device=device), torch.zeros(8, device=device), None, None, 1e-5)
        >>> y, statistics = bn_act(x, norm, z=x, training=True)  # relu(bn(x) + x)
        >>> y.shape, statistics.shape
        (torch.Size([2, 8, 4, 4]), torch.Size([2, 8]))
    """
    require_fitting(x, norm, training=training)
    if z is not None:
        z = z.to(x.dtype).expand_as(x)
    if z_norm is not None:
        require_fitting(x, z_norm, training=training)
    if x.numel() == 0:
        y = _oracle(Operands(x, norm, z, z_norm), training, relu=relu)
        return y, x.new_empty((2 if z_norm is None else 4, x.shape[1]), dtype=Matrix.of(x).sums)
    if z is not None and z_norm is not None:
        y, statistics, _ = _bn_act_dual(x, *norm, z, *z_norm, training, relu)
    else:
        y, statistics, _ = _bn_act(x, *norm, z, training, relu)
    return y, statistics


def _oracle(operands: Operands, training: bool, *, relu: bool) -> Tensor:
    """Compute the same in plain PyTorch, in the order of a residual block."""
    x, norm, z, z_norm = operands
    y = plain_batch_norm(x, norm, training)
    if z is not None:
        y = y + (z if z_norm is None else plain_batch_norm(z, z_norm, training))
    return F.relu(y) if relu else y


def _run(operands: Operands, training: bool, *, relu: bool) -> Tensor:
    return bn_act(*operands, training=training, relu=relu)[0]


KERNELS: tuple[Kernel, ...] = (
    Kernel(name="bn", run=partial(_run, relu=False), oracle=partial(_oracle, relu=False)),
    Kernel(name="bn+relu", run=partial(_run, relu=True), oracle=partial(_oracle, relu=True)),
    Kernel(name="bn+residual+relu", run=partial(_run, relu=True), oracle=partial(_oracle, relu=True), second=True),
    Kernel(
        name="dual",
        run=partial(_run, relu=True),
        oracle=partial(_oracle, relu=True),
        second=True,
        second_norm=True,
    ),
)
