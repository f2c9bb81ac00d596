"""Device functions of BatchNorm itself, shared by forward and backward so that both compute the same bits."""

import triton
import triton.language as tl

from kernels.batch_norm.statistics import merged_statistics


@triton.jit
def rstd_and_scale(var, weight_ptr, channels, C, EPS: tl.constexpr):
    """Return rstd = 1 / sqrt(var + eps) [B], and scale = rstd * weight."""
    rstd = tl.rsqrt(var + EPS)
    scale = rstd
    if weight_ptr is not None:
        scale = rstd * tl.load(weight_ptr + channels, mask=channels < C, other=0.0).to(var.dtype)
    return rstd, scale


@triton.jit
def saved_statistics(statistics_ptr, weight_ptr, channels, C, EPS: tl.constexpr):
    """Return mean, rstd and scale [B] of one BatchNorm from the statistics [2, C] of its forward pass."""
    mean = tl.load(statistics_ptr + channels, mask=channels < C, other=0.0)
    var = tl.load(statistics_ptr + C + channels, mask=channels < C, other=1.0)
    rstd, scale = rstd_and_scale(var, weight_ptr, channels, C, EPS)
    return mean, rstd, scale


@triton.jit
def shift_of(bias_ptr, mean, channels, C):
    """Return the bias [B], or zeros if there is none."""
    shift = tl.zeros_like(mean)
    if bias_ptr is not None:
        shift = tl.load(bias_ptr + channels, mask=channels < C, other=0.0).to(mean.dtype)
    return shift


@triton.jit
def normalised(x, mean, scale, shift):
    """Normalise a tile [R, B], the same bits in every kernel; subtracting first stays exact where |mean| >> std."""
    return tl.fma(x - mean[None, :], scale[None, :], shift[None, :])


@triton.jit
def kept(y):
    """Return where ReLU passes a rounded value and its gradient; NaN passes, as in torch."""
    return (y <= 0) == 0


@triton.jit
def branch(
    partials_ptr, running_mean_ptr, running_var_ptr, weight_ptr, bias_ptr, statistics_ptr, channels,
    rows, C, rows_per_part, parts, EPS: tl.constexpr,
):  # fmt: skip
    """Return mean, scale and shift [B] of one BatchNorm; the first program of each column stores its statistics."""
    valid = channels < C
    if partials_ptr is not None:
        mean, var = merged_statistics(partials_ptr, channels, rows, C, rows_per_part, parts)
    else:
        mean = tl.load(running_mean_ptr + channels, mask=valid, other=0.0).to(statistics_ptr.dtype.element_ty)
        var = tl.load(running_var_ptr + channels, mask=valid, other=0.0).to(statistics_ptr.dtype.element_ty)
    if tl.program_id(0) == 0:
        tl.store(statistics_ptr + channels, mean, mask=valid)
        tl.store(statistics_ptr + C + channels, var, mask=valid)
    _, scale = rstd_and_scale(var, weight_ptr, channels, C, EPS)
    return mean, scale, shift_of(bias_ptr, mean, channels, C)
