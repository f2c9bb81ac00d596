"""The backward pass of every fused BatchNorm and the activation that follows it: two passes.

Ioffe and Szegedy, "Batch Normalization" (2015), section 3, with g the gradient of the BatchNorm's output, n rows, and
x_hat = (x - mean) / sqrt(var + eps):

    dbias = sum g,  dweight = sum g * x_hat,  dx = weight / sqrt(var + eps) * (g - dbias / n - x_hat * dweight / n)

`_reduce` takes the sums, in parts; `_gradient` merges them in its prologue (every program for itself, in a fixed order:
without a launch of its own, and without atomics) and writes dx, walking every run of rows backwards, because what the
first pass read last is still in L2. In evaluation the statistics are constants and the terms after g vanish: `_reduce`
writes dx itself. A projected shortcut, bn(x) + bn(z), shares g: the same two passes give the gradients of both.

Touches (see `kernels.batch_norm.act`): R dy x, R dy x, W dx; for a residual R dy x, W g, R g x, W dx, where g is its
gradient.
"""

from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.batch_norm.normalise import kept, normalised, saved_statistics, shift_of
from kernels.batch_norm.statistics import MERGED_RUNS
from kernels.kernel import NO_NORM, Norm
from kernels.launch.layout import Matrix, dense, laid_out_like
from kernels.launch.passes import Pass, launch
from kernels.launch.runtime import require_runnable, wrap_triton
from kernels.launch.tiles import pixel_offsets, tile_offsets, unpack_bits

Activation = Literal["none", "from x", "bits", "pool"]
"""The operations after a BatchNorm: none; a ReLU whose mask is recomputed from x; a ReLU whose mask was saved; a ReLU
and the max-pooling of the stem, which saved the places of its maxima."""


@triton.jit
def _unpooled(dy_ptr, where_ptr, start, tile, channels, inside, C, HW, W, acc: tl.constexpr, LAYOUT: tl.constexpr):
    """Gradient [R, B] of rows start + tile through a 3x3 max-pooling of stride 2 and padding 1, in fp32 or fp64.

    Up to four windows contain a pixel: two if h is odd, times two if w is. Each gives its gradient to one pixel.
    """
    OH = (HW // W + 1) // 2
    OW = (W + 1) // 2
    within = (start % HW).to(tl.int32) + tile
    image = start // HW + within // HW
    pixel = within % HW
    h = pixel // W
    w = pixel % W
    total = tl.zeros([tile.shape[0], channels.shape[0]], dtype=acc)
    for corner in tl.static_range(4):
        oh = (h + corner // 2) // 2
        ow = (w + corner % 2) // 2
        tap = (h - 2 * oh + 1) * 3 + (w - 2 * ow + 1)
        holds = (h % 2 >= corner // 2) & (w % 2 >= corner % 2) & (oh < OH) & (ow < OW)
        contributes = inside & holds[:, None]
        offsets = pixel_offsets(image, oh * OW + ow, channels, C, OH * OW, LAYOUT)
        chosen = tl.load(where_ptr + offsets, mask=contributes, other=255)
        contributes &= chosen == tap[:, None]
        total += tl.load(dy_ptr + offsets, mask=contributes, other=0.0).to(acc)
    return total


@triton.jit
def _behind_activation(
    dy_ptr, x, mask_ptr, mean, scale, shift, start, tile, channels, offsets, inside, inside_rows, C, HW, W,
    ROUNDED: tl.constexpr, ACTIVATION: tl.constexpr, POLICY: tl.constexpr, LAYOUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """g [R, B], the gradient of the BatchNorm's output: dy taken back through the activation."""
    if ACTIVATION == "pool":
        g = _unpooled(dy_ptr, mask_ptr, start, tile, channels, inside, C, HW, W, x.dtype, LAYOUT)
    else:
        g = tl.load(dy_ptr + offsets, mask=inside, other=0.0, eviction_policy=POLICY).to(x.dtype)
        if ACTIVATION == "from x":
            g = tl.where(kept(normalised(x, mean, scale, shift).to(ROUNDED)), g, 0.0)
        elif ACTIVATION == "bits":
            packed = tl.program_id(1) * (BLOCK_CHANNELS // 8) + tl.arange(0, BLOCK_CHANNELS // 8)
            mask_offsets = tile_offsets(start, tile, packed, tl.cdiv(C, 8), HW, LAYOUT)
            valid_bytes = inside_rows[:, None] & (packed < tl.cdiv(C, 8))[None, :]
            bits = tl.load(mask_ptr + mask_offsets, mask=valid_bytes, other=0, eviction_policy=POLICY)
            g = tl.where(unpack_bits(bits, BLOCK_ROWS, BLOCK_CHANNELS) != 0, g, 0.0)
    return g


@triton.jit
def _reduce(
    sums_ptr,  # [2, runs, C] or for dual [3, runs, C]: sum of g, of g * x_hat and of g * z_hat over each run; written
    dx_ptr,  # [rows, C], written in evaluation, else None
    dz_ptr,  # [rows, C], written for a residual and, for dual, in evaluation; else None
    dy_ptr,  # [rows, C], or for a pooling [N, C, ceil(H / 2), ceil(W / 2)]
    x_ptr,  # [rows, C]
    z_ptr,  # [rows, C] for dual, else None
    mask_ptr,  # [rows, ceil(C / 8)] bits, or for a pooling the places of maxima, like dy; or None
    statistics_ptr,  # [2 or 4, C]
    weight_ptr, bias_ptr, z_weight_ptr,  # [C] or None
    rows, C, HW, W, rows_per_run,
    EPS: tl.constexpr, Z_EPS: tl.constexpr, ACTIVATION: tl.constexpr, LAYOUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    acc = statistics_ptr.dtype.element_ty
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    valid = channels < C
    mean, rstd, scale = saved_statistics(statistics_ptr, weight_ptr, channels, C, EPS)
    shift = shift_of(bias_ptr, mean, channels, C)
    if z_ptr is not None:
        z_mean, z_rstd, z_scale = saved_statistics(statistics_ptr + 2 * C, z_weight_ptr, channels, C, Z_EPS)
    tile = tl.arange(0, BLOCK_ROWS)
    first = tl.program_id(0).to(tl.int64) * rows_per_run
    last = tl.minimum(first + rows_per_run, rows)
    total = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], dtype=acc)
    along_x = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], dtype=acc)
    along_z = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], dtype=acc)
    for start in range(first, last, BLOCK_ROWS):
        inside_rows = start + tile < last
        inside = inside_rows[:, None] & valid[None, :]
        offsets = tile_offsets(start, tile, channels, C, HW, LAYOUT)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0, eviction_policy="evict_last").to(acc)
        g = _behind_activation(
            dy_ptr, x, mask_ptr, mean, scale, shift, start, tile, channels, offsets, inside, inside_rows, C, HW, W,
            x_ptr.dtype.element_ty, ACTIVATION, "evict_last", LAYOUT, BLOCK_ROWS, BLOCK_CHANNELS,
        )  # fmt: skip
        total += g
        along_x += g * (x - mean[None, :])
        if dx_ptr is not None:
            tl.store(dx_ptr + offsets, (g * scale[None, :]).to(dx_ptr.dtype.element_ty), mask=inside)
        if z_ptr is not None:
            z = tl.load(z_ptr + offsets, mask=inside, other=0.0, eviction_policy="evict_last").to(acc)
            along_z += g * (z - z_mean[None, :])
            if dz_ptr is not None:
                tl.store(dz_ptr + offsets, (g * z_scale[None, :]).to(dz_ptr.dtype.element_ty), mask=inside)
        elif dz_ptr is not None:
            tl.store(dz_ptr + offsets, g.to(dz_ptr.dtype.element_ty), mask=inside)
    plane = tl.num_programs(0).to(tl.int64) * C
    out = sums_ptr + tl.program_id(0).to(tl.int64) * C + channels
    tl.store(out, tl.sum(total, axis=0), mask=valid)
    tl.store(out + plane, tl.sum(along_x, axis=0) * rstd, mask=valid)
    if z_ptr is not None:
        tl.store(out + 2 * plane, tl.sum(along_z, axis=0) * z_rstd, mask=valid)


@triton.jit
def _merged_sum(sums_ptr, channels, C, parts):
    """The sum [B] of sums [parts, C] over parts."""
    total = tl.zeros([MERGED_RUNS, channels.shape[0]], dtype=sums_ptr.dtype.element_ty)
    for start in range(0, parts, MERGED_RUNS):
        part = start + tl.arange(0, MERGED_RUNS)
        inside = (part < parts)[:, None] & (channels < C)[None, :]
        total += tl.load(sums_ptr + part[:, None] * C + channels[None, :], mask=inside, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def _line(sum_g, sum_along, rstd, scale, rows):
    """dx = scale * (g - sum_g / rows - x_hat * sum_along / rows) as a line in x - mean: its slope and offset [B]."""
    return -scale * rstd * sum_along / rows, -scale * sum_g / rows


@triton.jit
def _on_line(g, deviation, scale, slope, offset):
    """The input gradient [R, B] of a BatchNorm in training."""
    return tl.fma(g, scale[None, :], tl.fma(deviation, slope[None, :], offset[None, :]))


@triton.jit
def _gradient(
    dx_ptr,  # [rows, C], written
    dz_ptr,  # [rows, C] for dual, written; else None
    dweight_ptr, dbias_ptr, z_dweight_ptr, z_dbias_ptr,  # [C], written; or None
    dy_ptr,  # [rows, C], or for a pooling [N, C, ceil(H / 2), ceil(W / 2)]
    x_ptr,  # [rows, C]
    z_ptr,  # [rows, C] for dual, else None
    mask_ptr,  # [rows, ceil(C / 8)] bits, or for a pooling the places of maxima, like dy; or None
    statistics_ptr,  # [2 or 4, C]
    sums_ptr,  # [2 or 3, parts, C] of _reduce
    weight_ptr, bias_ptr, z_weight_ptr,  # [C] or None
    rows, C, HW, W, rows_per_run, parts,
    EPS: tl.constexpr, Z_EPS: tl.constexpr, ACTIVATION: tl.constexpr, LAYOUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    acc = statistics_ptr.dtype.element_ty
    count = tl.cast(rows, acc)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    valid = channels < C
    plane = tl.cast(parts, tl.int64) * C
    sum_g = _merged_sum(sums_ptr, channels, C, parts)
    sum_along = _merged_sum(sums_ptr + plane, channels, C, parts)
    mean, rstd, scale = saved_statistics(statistics_ptr, weight_ptr, channels, C, EPS)
    shift = shift_of(bias_ptr, mean, channels, C)
    slope, offset = _line(sum_g, sum_along, rstd, scale, count)
    writes_sums = valid & (tl.program_id(0) == 0)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + channels, sum_g.to(dbias_ptr.dtype.element_ty), mask=writes_sums)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + channels, sum_along.to(dweight_ptr.dtype.element_ty), mask=writes_sums)
    if z_dbias_ptr is not None:
        tl.store(z_dbias_ptr + channels, sum_g.to(z_dbias_ptr.dtype.element_ty), mask=writes_sums)
    if z_ptr is not None:
        z_sum_along = _merged_sum(sums_ptr + 2 * plane, channels, C, parts)
        z_mean, z_rstd, z_scale = saved_statistics(statistics_ptr + 2 * C, z_weight_ptr, channels, C, Z_EPS)
        z_slope, z_offset = _line(sum_g, z_sum_along, z_rstd, z_scale, count)
        if z_dweight_ptr is not None:
            tl.store(z_dweight_ptr + channels, z_sum_along.to(z_dweight_ptr.dtype.element_ty), mask=writes_sums)
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
        g = _behind_activation(
            dy_ptr, x, mask_ptr, mean, scale, shift, start, tile, channels, offsets, inside, inside_rows, C, HW, W,
            x_ptr.dtype.element_ty, ACTIVATION, "evict_first", LAYOUT, BLOCK_ROWS, BLOCK_CHANNELS,
        )  # fmt: skip
        dx = _on_line(g, x - mean[None, :], scale, slope, offset)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        if z_ptr is not None:
            z = tl.load(z_ptr + offsets, mask=inside, other=0.0, eviction_policy="evict_first").to(acc)
            dz = _on_line(g, z - z_mean[None, :], z_scale, z_slope, z_offset)
            tl.store(dz_ptr + offsets, dz.to(dz_ptr.dtype.element_ty), mask=inside)


class Gradients(NamedTuple):
    """The gradients of x and z, and of the parameters of their BatchNorms; None for what does not exist."""

    x: Tensor
    z: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    z_weight: Tensor | None
    z_bias: Tensor | None


def bn_backward(
    dy: Tensor, x: Tensor, z: Tensor | None, norm: Norm, z_norm: Norm | None, statistics: Tensor, mask: Tensor | None,
    *, training: bool, activation: Activation,
) -> Gradients:  # fmt: skip
    """Compute the gradients of act(bn(x)), act(bn(x) + residual) or act(bn(x) + bn(z)).

    Args:
        dy: gradient of the result, like x; for a pooling [N, C, ceil(H / 2), ceil(W / 2)].
        x: [N, C, H, W].
        z: like x, the input of a second BatchNorm. A residual is not needed: its gradient is g.
        norm: the BatchNorm of x; its running statistics are ignored.
        z_norm: the BatchNorm of z.
        statistics: [2, C], or [4, C] with z: mean and biased variance that the forward pass used.
        mask: the saved mask of "bits", or the places of maxima of "pool".
        training: whether the statistics were those of the batch, so that gradients flow through them.
        activation: what follows the BatchNorm; with "bits" and no z, the gradient of the residual is returned as z's.
    """
    require_runnable(x.device)
    x = dense(x)
    dy, z = laid_out_like(dy, x), None if z is None else laid_out_like(z, x)
    matrix = Matrix.of(x)
    norm, second = norm.contiguous(), (z_norm or NO_NORM).contiguous()
    residual = z is None and activation == "bits"
    dx = None if training else torch.empty_like(x)
    dz = torch.empty_like(x) if residual or (z is not None and not training) else None

    reduce, _ = _passes(activation, dual=z is not None)
    plan = launch(reduce, matrix)
    sums = statistics.new_empty((2 if z is None else 3, plan.runs, matrix.channels))
    wrap_triton(_reduce)[plan.grid](
        sums, dx, dz,
        dy, x, z, mask, statistics, norm.weight, norm.bias, second.weight,
        matrix.rows, matrix.channels, matrix.pixels, matrix.width, plan.rows_per_run,
        EPS=norm.eps, Z_EPS=second.eps, ACTIVATION=activation, LAYOUT=matrix.layout,
        BLOCK_ROWS=plan.block_rows, BLOCK_CHANNELS=plan.block_channels, num_warps=plan.num_warps,
    )  # fmt: skip
    if dx is not None:
        parameters = (norm.weight, norm.bias, second.weight, second.bias)
        totals = sums.sum(1)  # rows are taken as views: indexing by a list would copy it from the host
        pairs = zip((totals[1], totals[0], totals[-1], totals[0]), parameters, strict=True)
        gradients = (None if parameter is None else total.to(parameter.dtype, copy=True) for total, parameter in pairs)
        return Gradients(dx, dz, *gradients)
    if dz is not None:
        masked = bn_gradient(dz, x, None, norm, None, statistics, None, sums, activation="none")
        return masked._replace(z=dz)
    return bn_gradient(dy, x, z, norm, z_norm, statistics, mask, sums, activation=activation)


def bn_gradient(
    dy: Tensor, x: Tensor, z: Tensor | None, norm: Norm, z_norm: Norm | None, statistics: Tensor, mask: Tensor | None,
    sums: Tensor, *, activation: Activation,
) -> Gradients:  # fmt: skip
    """Run the second pass of `bn_backward` in training, on dense tensors in one memory format.

    Takes the same arguments, and sums [2 or 3, parts, C]: the parts of sum g, of sum g * x_hat and with z of
    sum g * z_hat.
    """
    matrix = Matrix.of(x)
    norm, second = norm.contiguous(), (z_norm or NO_NORM).contiguous()
    dx, dz = torch.empty_like(x), None if z is None else torch.empty_like(z)
    parameters = (norm.weight, norm.bias, second.weight, second.bias)
    dweight, dbias, dz_weight, dz_bias = (
        None if parameter is None else torch.empty_like(parameter) for parameter in parameters
    )
    _, gradient = _passes(activation, dual=z is not None)
    plan = launch(gradient, matrix)
    wrap_triton(_gradient)[plan.grid](
        dx, dz, dweight, dbias, dz_weight, dz_bias,
        dy, x, z, mask, statistics, sums, norm.weight, norm.bias, second.weight,
        matrix.rows, matrix.channels, matrix.pixels, matrix.width, plan.rows_per_run, sums.shape[1],
        EPS=norm.eps, Z_EPS=second.eps, ACTIVATION=activation, LAYOUT=matrix.layout,
        BLOCK_ROWS=plan.block_rows, BLOCK_CHANNELS=plan.block_channels, num_warps=plan.num_warps,
    )  # fmt: skip
    return Gradients(dx, dz, dweight, dbias, dz_weight, dz_bias)


def _passes(activation: Activation, *, dual: bool) -> tuple[Pass, Pass]:
    if activation == "pool":
        return "reduce pool", "gradient pool"
    return ("reduce dual", "gradient dual") if dual else ("reduce", "gradient")
