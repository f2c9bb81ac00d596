"""The stem in one op: BatchNorm, ReLU and 3x3 max-pooling of stride 2, forward and backward, training and evaluation.

    y = max_pool2d(relu(bn(x)), kernel_size=3, stride=2, padding=1)

The largest activation of the network is never written normalised. The backward pass needs the place of each maximum in
its window, one byte (torch stores eight): 0 to 8 from the top left, or DEAD where the ReLU passed nothing.

Touches (reads and writes of a tensor of x's size) and launches:

    training forward    R x, R x, W y (1/4) and places (1/4 byte per element)    2 launches
    training backward   R dy (1/4), places, x, again, W dx                       2
    evaluation          R x, W y, places; R dy, places, x, W dx                  1; 1 and a sum over programs

Windows overlap: each value is read once from memory, and 2.25 times from the caches.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from kernels.batch_norm.backward import bn_backward
from kernels.batch_norm.normalise import branch, kept, normalised
from kernels.batch_norm.statistics import partial_statistics
from kernels.kernel import Kernel, Norm, Operands, plain_batch_norm, require_fitting
from kernels.launch.autograd import absent, differentiable, differentiable_once, present, save_for_backward
from kernels.launch.layout import Matrix, dense, empty_laid_out_like
from kernels.launch.passes import launch
from kernels.launch.runtime import require_runnable, triton_op, wrap_triton
from kernels.launch.tiles import pixel_offsets

_DEAD = tl.constexpr(9)


@triton.jit
def _pool(
    y_ptr,  # [N, C, ceil(H / 2), ceil(W / 2)], written
    places_ptr,  # like y, bytes, written
    statistics_ptr,  # [2, C], written
    x_ptr,  # [N, C, H, W]
    partials_ptr,  # [1, 2, parts, C] in training, else None
    running_mean_ptr, running_var_ptr, weight_ptr, bias_ptr,  # [C] or None
    rows, C, HW, W, out_rows, OHW, OW, rows_per_run, rows_per_part, parts,
    EPS: tl.constexpr, LAYOUT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    acc = statistics_ptr.dtype.element_ty
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    valid = channels < C
    mean, scale, shift = branch(
        partials_ptr, running_mean_ptr, running_var_ptr, weight_ptr, bias_ptr, statistics_ptr, channels,
        rows, C, rows_per_part, parts, EPS,
    )  # fmt: skip
    tile = tl.arange(0, BLOCK_ROWS)
    first = tl.program_id(0).to(tl.int64) * rows_per_run
    last = tl.minimum(first + rows_per_run, out_rows)
    tiles = tl.cdiv(last - first, BLOCK_ROWS)
    for step in range(tiles):
        start = first + (tiles - 1 - step) * BLOCK_ROWS
        inside_rows = start + tile < last
        within = (start % OHW).to(tl.int32) + tile
        image = start // OHW + within // OHW
        pixel = within % OHW
        top = pixel // OW * 2 - 1
        left = pixel % OW * 2 - 1
        best = tl.full([BLOCK_ROWS, BLOCK_CHANNELS], -1.0, dtype=acc)  # below every value after a ReLU
        place = tl.full([BLOCK_ROWS, BLOCK_CHANNELS], _DEAD, dtype=tl.int32)
        for tap in tl.static_range(9):
            h = top + tap // 3
            w = left + tap % 3
            inside = (inside_rows & (h >= 0) & (h < HW // W) & (w >= 0) & (w < W))[:, None] & valid[None, :]
            x = tl.load(x_ptr + pixel_offsets(image, h * W + w, channels, C, HW, LAYOUT), mask=inside, other=0.0)
            y = normalised(x.to(acc), mean, scale, shift).to(y_ptr.dtype.element_ty)
            active = kept(y)
            y = tl.where(active, y, 0.0).to(acc)
            better = inside & ((y > best) | (y != y))  # noqa: PLR0124 - NaN wins, then the first of equal values
            best = tl.where(better, y, best)
            place = tl.where(better, tl.where(active, tap, _DEAD), place)
        out = pixel_offsets(image, pixel, channels, C, OHW, LAYOUT)
        inside = inside_rows[:, None] & valid[None, :]
        tl.store(y_ptr + out, best.to(y_ptr.dtype.element_ty), mask=inside)
        tl.store(places_ptr + out, place.to(tl.uint8), mask=inside)


@triton_op("resbench::bn_pool")
def _bn_pool(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    require_runnable(x.device)
    x = dense(x)
    matrix = Matrix.of(x)
    n, channels, height, width = x.shape
    shape = (n, channels, (height + 1) // 2, (width + 1) // 2)
    y, places = (empty_laid_out_like(x, shape, dtype) for dtype in (x.dtype, torch.uint8))
    statistics = x.new_empty((2, channels), dtype=matrix.sums)
    partials, rows_per_part = partial_statistics(x, None, matrix) if training else (None, 0)
    out = Matrix.of(y)
    plan = launch("pool", out)
    norm = Norm(weight, bias, running_mean, running_var, eps).contiguous()
    wrap_triton(_pool)[plan.grid](
        y, places, statistics, x, partials, norm.running_mean, norm.running_var, norm.weight, norm.bias,
        matrix.rows, matrix.channels, matrix.pixels, matrix.width, out.rows, out.pixels, out.width,
        plan.rows_per_run, rows_per_part, 0 if partials is None else partials.shape[2],
        EPS=eps, LAYOUT=matrix.layout,
        BLOCK_ROWS=plan.block_rows, BLOCK_CHANNELS=plan.block_channels, num_warps=plan.num_warps,
    )  # fmt: skip
    return y, statistics, places


@triton_op("resbench::bn_pool_backward")
def _bn_pool_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    statistics: Tensor,
    places: Tensor,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    norm = Norm(weight, bias, None, None, eps)
    gradients = bn_backward(dy, x, None, norm, None, statistics, places, training=training, activation="pool")
    return gradients.x, present(gradients.weight, x), present(gradients.bias, x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ANN401 - torch's
    x, weight, bias, _, _, ctx.eps, ctx.training = inputs
    save_for_backward(ctx, output, x, weight, bias)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
    x, weight, bias, statistics, places = ctx.saved_tensors
    dx, *parameters = _bn_pool_backward(dy, x, weight, bias, ctx.eps, statistics, places, ctx.training)
    return dx, *absent(parameters, (weight, bias)), None, None, None, None


differentiable(_bn_pool, _differentiate, _setup)
differentiable_once(_bn_pool_backward)


def bn_pool(x: Tensor, norm: Norm, *, training: bool) -> tuple[Tensor, Tensor]:
    """Compute max_pool2d(relu(bn(x)), 3, stride=2, padding=1), differentiable once.

    It is the stem of He et al., "Deep Residual Learning for Image Recognition" (2015), table 1, with the BatchNorm of
    `bn_act`. Of equal values in a window the first has the gradient.

    Args:
        x: [N, C, H, W], fp16, bf16, fp32 or fp64.
        norm: the BatchNorm. Running statistics are ignored in training, and never updated here:
            `resnet.FusedBatchNormAct2d.pool` does that as well.
        training: normalise by the statistics of the batch, otherwise by the running statistics.

    Returns:
        y: [N, C, ceil(H / 2), ceil(W / 2)], in the dtype of x.
        statistics: [2, C], in fp32 (fp64 where x is fp64), without a gradient: mean and biased variance that x was
            normalised by; undefined where x is empty.

    Raises:
        ValueError: x is not 4D, has one value a channel in training, or `eps` may divide by zero.
        NotImplementedError: x has another dtype.
        RuntimeError: tensors that do not fit each other; evaluation without running statistics; kernels that cannot
            run here; or a second derivative is asked for.

    Examples:
        >>> import torch
        >>> from kernels import Norm, bn_pool
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU interpreted, and slow
        >>> x = torch.randn(2, 8, 7, 7, device=device)
        >>> norm = Norm(torch.ones(8, device=device), torch.zeros(8, device=device), None, None, 1e-5)
        >>> y, statistics = bn_pool(x, norm, training=True)
        >>> y.shape, statistics.shape
        (torch.Size([2, 8, 4, 4]), torch.Size([2, 8]))
    """
    require_fitting(x, norm, training=training)
    if x.numel() == 0:
        return _oracle(Operands(x, norm, None, None), training), x.new_empty((2, x.shape[1]), dtype=Matrix.of(x).sums)
    y, statistics, _ = _bn_pool(x, *norm, training)
    return y, statistics


def _oracle(operands: Operands, training: bool) -> Tensor:
    """Compute the same in plain PyTorch."""
    y = F.relu(plain_batch_norm(operands.x, operands.norm, training))
    return F.max_pool2d(y, kernel_size=3, stride=2, padding=1)


def _run(operands: Operands, training: bool) -> Tensor:
    return bn_pool(operands.x, operands.norm, training=training)[0]


KERNELS: tuple[Kernel, ...] = (Kernel(name="stem", run=_run, oracle=_oracle),)
