"""A 1x1 convolution that computes the partial statistics of its own result, which BatchNorm need not read for them.

    out = conv1x1(x, filters, stride)

The partial statistics are those of `kernels.batch_norm.statistics`, of the values as they are stored: for each run of
rows the mean, and the squared deviations from it, summed around the mean of the run's first tile.

Moves: R x (only its strided rows), R filters, W out, W partial sums. Work: 2 * rows * K * N. Where cuBLAS was measured
to be faster in spite of it (`kernels.products.tiles`), it computes out, which is then read once more.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.batch_norm.statistics import partial_statistics
from kernels.launch.layout import Matrix, empty_laid_out_like
from kernels.launch.runtime import Budget, launch_kernel
from kernels.products.cublas import as_rows, library_product
from kernels.products.operands import Pixels, activation_product, source_rows
from kernels.products.plans import by_library, product_launch, product_of, product_precision


@triton.jit
def _conv_statistics(
    out_ptr,  # [rows, N], written
    partials_ptr,  # [2, runs, N], written: mean and squared deviations of each run
    x_ptr,  # [source rows, K]
    filters_ptr,  # [N, K]
    rows, N, K, pixels, width, source_pixels, source_width, rows_per_run,
    STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    acc = partials_ptr.dtype.element_ty
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    valid = columns < N
    first = tl.program_id(1).to(tl.int64) * rows_per_run
    last = tl.minimum(first + rows_per_run, rows)
    pivot = tl.zeros([BLOCK_COLUMNS], dtype=acc)
    total = tl.zeros([BLOCK_COLUMNS], dtype=acc)
    squares = tl.zeros([BLOCK_COLUMNS], dtype=acc)
    for start in range(first, last, BLOCK_ROWS):
        tile_rows = start + tl.arange(0, BLOCK_ROWS)
        inside_rows = tile_rows < last
        source = source_rows(tile_rows, pixels, width, source_pixels, source_width, STRIDE)
        product = activation_product(
            tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype=acc), x_ptr, None, None, source, inside_rows,
            filters_ptr, columns, K, N, True, PRECISION, BLOCK_INNER,
        )  # fmt: skip
        out = product.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + (tile_rows * N)[:, None] + columns[None, :], out, mask=inside_rows[:, None] & valid[None, :])
        value = out.to(acc)
        if start == first:
            pivot = tl.sum(value, axis=0) / tl.minimum(last - first, BLOCK_ROWS).to(acc)
        deviation = tl.where(inside_rows[:, None], value - pivot[None, :], 0.0)
        total += tl.sum(deviation, axis=0)
        squares += tl.sum(deviation * deviation, axis=0)
    count = (last - first).to(acc)
    shift = total / count
    spread = tl.maximum(squares - shift * shift * count, 0.0, propagate_nan=tl.PropagateNan.ALL)
    run = partials_ptr + tl.program_id(1).to(tl.int64) * N + columns
    tl.store(run, pivot + shift, mask=valid)
    tl.store(run + tl.num_programs(1).to(tl.int64) * N, spread, mask=valid)


def conv_statistics(x: Tensor, filters: Tensor, stride: int) -> tuple[Tensor, Tensor, int]:
    """Compute a 1x1 convolution and the partial statistics of its result.

    Args:
        x: [N, C, H, W], channels_last.
        filters: [C_out, C, 1, 1] in the dtype of x, contiguous.
        stride: in both directions; no padding.

    Returns:
        out [N, C_out, ceil(H / stride), ceil(W / stride)], channels_last; partials [1, 2, runs, C_out] in fp32 (fp64
        for fp64); and the rows of a run.
    """
    n, inner, height, width = map(int, x.shape)
    columns = int(filters.shape[0])
    pixels = Pixels.of(x, stride)
    out = empty_laid_out_like(x, (n, columns, -(-height // stride), -(-width // stride)), x.dtype)
    product = product_of("conv", x.dtype, columns, inner)
    if stride == 1 and by_library(product):
        library_product(as_rows(out), as_rows(x), filters.view(columns, inner).t(), product)
        return out, *partial_statistics(out, None, Matrix.of(out))
    plan = product_launch("conv", pixels.rows, columns, inner, x.dtype)
    partials = x.new_empty((1, 2, plan.runs, columns), dtype=Matrix.of(x).sums)
    launch_kernel(
        _conv_statistics, plan.grid,
        out, partials, x, filters,
        pixels.rows, columns, inner, *pixels.geometry, plan.rows_per_run,
        STRIDE=stride, PRECISION=product_precision(x.dtype),
        BLOCK_ROWS=plan.block_rows, BLOCK_COLUMNS=plan.block_columns, BLOCK_INNER=plan.block_inner,
        num_warps=plan.num_warps, num_stages=plan.num_stages, chosen_for=plan.product,
        budget=lambda: Budget(
            read=pixels.rows * inner * x.itemsize + filters.nbytes,
            written=out.nbytes + partials.nbytes,
            flops=2 * pixels.rows * inner * columns,
        ),
    )  # fmt: skip
    return out, partials, plan.rows_per_run
