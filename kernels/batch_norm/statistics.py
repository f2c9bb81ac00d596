"""Batch statistics per channel: the first pass of every BatchNorm in training, and the merging of its parts.

`partial_statistics` reads x once (1 touch) and leaves a mean and a sum of squared deviations for each run of rows. The
pass that normalises merges them in its prologue, every program for itself and all in the same order, so that merging
needs no launch of its own and two runs are equal bit for bit.

Sums are taken of x - pivot, the pivot being the mean of the run's first tile: with n rows in a run and b in a tile,
|pivot - mean|^2 <= n/b * variance (Cauchy-Schwarz), so that cancellation costs at most n/b units of rounding, however
far the mean lies from zero. Runs are merged around the mean of the first one, as Chan, Golub and LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances" (1979), equation 1.5b, does for two.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.launch.layout import Matrix
from kernels.launch.passes import launch
from kernels.launch.runtime import require_runnable, triton_op, wrap_triton
from kernels.launch.tiles import tile_offsets

MERGED_RUNS = tl.constexpr(32)  # partial sums read at a time


@triton.jit
def _store_run(x_ptr, partials_ptr, first, last, channels, C, HW, runs, LAYOUT: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Store the mean and sum of squared deviations of rows first to last of x [rows, C] in partials [2, runs, C]."""
    acc = partials_ptr.dtype.element_ty
    rows = tl.arange(0, BLOCK_ROWS)
    valid = channels < C
    inside = (first + rows < last)[:, None] & valid[None, :]
    x = tl.load(x_ptr + tile_offsets(first, rows, channels, C, HW, LAYOUT), mask=inside, other=0.0).to(acc)
    pivot = tl.sum(x, axis=0) / tl.minimum(last - first, BLOCK_ROWS).to(acc)
    deviation = tl.where(inside, x - pivot[None, :], 0.0)
    total = deviation
    squares = deviation * deviation
    for start in range(first + BLOCK_ROWS, last, BLOCK_ROWS):
        inside = (start + rows < last)[:, None] & valid[None, :]
        offsets = tile_offsets(start, rows, channels, C, HW, LAYOUT)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0, eviction_policy="evict_last").to(acc)
        deviation = tl.where(inside, x - pivot[None, :], 0.0)
        total += deviation
        squares += deviation * deviation
    count = (last - first).to(acc)
    shift = tl.sum(total, axis=0) / count
    spread = tl.maximum(tl.sum(squares, axis=0) - shift * shift * count, 0.0, propagate_nan=tl.PropagateNan.ALL)
    out = tl.program_id(0).to(tl.int64) * C + channels
    tl.store(partials_ptr + out, pivot + shift, mask=valid)
    tl.store(partials_ptr + tl.cast(runs, tl.int64) * C + out, spread, mask=valid)


@triton.jit
def _partial_statistics(
    x_ptr,  # [rows, C]
    z_ptr,  # [rows, C] or None
    partials_ptr,  # [1 or 2, 2, runs, C]: mean and squared deviations of each run of x, then of z
    rows, C, HW, rows_per_run,
    LAYOUT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * rows_per_run
    last = tl.minimum(first + rows_per_run, rows)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    runs = tl.num_programs(0)
    _store_run(x_ptr, partials_ptr, first, last, channels, C, HW, runs, LAYOUT, BLOCK_ROWS)
    if z_ptr is not None:
        second_ptr = partials_ptr + 2 * tl.cast(runs, tl.int64) * C
        _store_run(z_ptr, second_ptr, first, last, channels, C, HW, runs, LAYOUT, BLOCK_ROWS)


@triton.jit
def merged_statistics(partials_ptr, channels, rows, C, rows_per_run, runs):
    """Return the mean and biased variance [B] of all rows from partials [2, runs, C]."""
    acc = partials_ptr.dtype.element_ty
    valid = channels < C
    pivot = tl.load(partials_ptr + channels, mask=valid, other=0.0)
    total = tl.zeros([MERGED_RUNS, channels.shape[0]], dtype=acc)
    squares = tl.zeros([MERGED_RUNS, channels.shape[0]], dtype=acc)
    for start in range(0, runs, MERGED_RUNS):
        run = start + tl.arange(0, MERGED_RUNS)
        inside = (run < runs)[:, None] & valid[None, :]
        offsets = run.to(tl.int64)[:, None] * C + channels[None, :]
        mean = tl.load(partials_ptr + offsets, mask=inside, other=0.0)
        spread = tl.load(partials_ptr + tl.cast(runs, tl.int64) * C + offsets, mask=inside, other=0.0)
        count = tl.minimum(rows - run.to(tl.int64) * rows_per_run, rows_per_run).to(acc)[:, None]
        deviation = tl.where(inside, mean - pivot[None, :], 0.0)
        total += deviation * count
        squares += spread + deviation * deviation * count
    count = tl.cast(rows, acc)
    shift = tl.sum(total, axis=0) / count
    spread = tl.sum(squares, axis=0) / count - shift * shift
    return pivot + shift, tl.maximum(spread, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _update_running(
    running_mean_ptr,  # [C]
    running_var_ptr,  # [C]
    num_batches_tracked_ptr,  # []
    statistics_ptr,  # [2, C]: mean and biased variance of the batch
    C,
    count,  # values per channel
    MOMENTUM: tl.constexpr,  # None: the average over all batches so far
    BLOCK: tl.constexpr,
):  # fmt: skip
    acc = statistics_ptr.dtype.element_ty
    batches = tl.load(num_batches_tracked_ptr) + 1
    tl.store(num_batches_tracked_ptr, batches)
    momentum = 1.0 / batches.to(acc) if MOMENTUM is None else tl.full([1], MOMENTUM, dtype=acc)
    unbiased = tl.cast(count, acc) / tl.cast(count - 1, acc)
    for start in range(0, C, BLOCK):
        channels = start + tl.arange(0, BLOCK)
        valid = channels < C
        mean = tl.load(statistics_ptr + channels, mask=valid)
        var = tl.load(statistics_ptr + C + channels, mask=valid) * unbiased
        old_mean = tl.load(running_mean_ptr + channels, mask=valid).to(acc)
        old_var = tl.load(running_var_ptr + channels, mask=valid).to(acc)
        tl.store(running_mean_ptr + channels, old_mean * (1 - momentum) + mean * momentum, mask=valid)
        tl.store(running_var_ptr + channels, old_var * (1 - momentum) + var * momentum, mask=valid)


def partial_statistics(x: Tensor, z: Tensor | None, matrix: Matrix) -> tuple[Tensor, int]:
    """Return partial statistics [1 or 2, 2, runs, C] of dense x [N, C, H, W] and z, if any; and the rows per run."""
    plan = launch("statistics", matrix)
    partials = x.new_empty((1 if z is None else 2, 2, plan.runs, matrix.channels), dtype=matrix.sums)
    wrap_triton(_partial_statistics)[plan.grid](
        x, z, partials,
        matrix.rows, matrix.channels, matrix.pixels, plan.rows_per_run,
        LAYOUT=matrix.layout, BLOCK_ROWS=plan.block_rows, BLOCK_CHANNELS=plan.block_channels,
        num_warps=plan.num_warps,
    )  # fmt: skip
    return partials, plan.rows_per_run


@triton_op("resbench::update_running_statistics", mutates_args=("running_mean", "running_var", "num_batches_tracked"))
def update_running_statistics(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    statistics: Tensor,
    momentum: float | None,
    count: int,
) -> None:
    """Update the buffers of nn.BatchNorm2d as a training step does, in one launch and without synchronising.

    Args:
        running_mean: [C], contiguous, changed in place.
        running_var: [C], contiguous, changed in place.
        num_batches_tracked: [] int64, incremented in place.
        statistics: [2, C], mean and biased variance of the batch.
        momentum: the weight of this batch; None for the average over all batches.
        count: N * H * W, at least 2: the running variance is unbiased.

    Raises:
        ValueError: the running statistics are not contiguous.
    """
    if not (running_mean.is_contiguous() and running_var.is_contiguous()):
        raise ValueError("running statistics have to be contiguous to be updated in place; call contiguous() on them")
    require_runnable(running_mean.device)
    channels = running_mean.numel()
    wrap_triton(_update_running)[(1,)](
        running_mean, running_var, num_batches_tracked, statistics, channels, count,
        MOMENTUM=momentum, BLOCK=min(1024, triton.next_power_of_2(channels)), num_warps=4,
    )  # fmt: skip
