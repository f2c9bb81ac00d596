"""The product of a gradient and the input of a 1x1 convolution, summed over all rows: the gradient of its filters.

    products = D^T (y - centre) [N, C],  sums = D summed over rows [N]

D is dy masked by a ReLU, y is relu(bn(x)) or x itself; both are computed when their tiles are loaded. Rows are split;
every reader merges the splits in the same order, so that two runs are equal bit for bit.

Moves: R dy, R mask, R x, W partial products (fp32). Work: 2 * rows * N * C.

`merged_filter_gradient` is the gradient itself, for an input that is used as it is; cuBLAS computes it where that was
measured to be faster (`kernels.products.tiles`).
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.launch.layout import Matrix
from kernels.launch.runtime import Budget, launch_kernel
from kernels.products.cublas import as_rows, library_product
from kernels.products.operands import Pixels, activation_tile, masked_tile, source_rows
from kernels.products.plans import by_library, product_of, product_precision, row_product_launch


@triton.jit
def _filter_gradient(
    products_ptr,  # [splits, N, C], written
    sums_ptr,  # [splits, N], written; or None
    dy_ptr,  # [rows, N]
    mask_ptr,  # [rows, N / 8] or None
    x_ptr,  # [source rows, C]
    line_ptr,  # [3, C] or None
    centre_ptr,  # [C] or None
    rows, N, C, pixels, width, source_pixels, source_width, rows_per_split,
    STRIDE: tl.constexpr, PRECISION: tl.constexpr, COLUMN_BLOCKS: tl.constexpr,
    BLOCK_INNER: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    acc = products_ptr.dtype.element_ty
    first_filter = tl.program_id(0) // COLUMN_BLOCKS * BLOCK_ROWS
    j = tl.program_id(0) % COLUMN_BLOCKS
    filters = first_filter + tl.arange(0, BLOCK_ROWS)
    channels = j * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    split = tl.program_id(1).to(tl.int64)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, rows)
    product = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype=acc)
    total = tl.zeros([BLOCK_ROWS], dtype=acc)
    for start in range(first, last, BLOCK_INNER):
        tile_rows = start + tl.arange(0, BLOCK_INNER)
        dy = masked_tile(dy_ptr, mask_ptr, tile_rows, tile_rows < last, first_filter, N, BLOCK_INNER, BLOCK_ROWS)
        source = source_rows(tile_rows, pixels, width, source_pixels, source_width, STRIDE)
        y = activation_tile(x_ptr, line_ptr, centre_ptr, source, tile_rows < last, channels, C)
        product = tl.dot(tl.trans(dy), y, product, input_precision=PRECISION)
        if sums_ptr is not None:
            total += tl.sum(dy.to(acc), axis=0)
    inside = (filters < N)[:, None] & (channels < C)[None, :]
    tl.store(products_ptr + split * N * C + filters[:, None] * C + channels[None, :], product, mask=inside)
    if sums_ptr is not None:
        tl.store(sums_ptr + split * N + filters, total, mask=(filters < N) & (j == 0))


def filter_gradient(
    dy: Tensor,
    mask: Tensor | None,
    x: Tensor,
    stride: int,
    *,
    line: Tensor | None = None,
    centre: Tensor | None = None,
    with_sums: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute D^T (y - centre) and the sums of D, both in parts.

    Args:
        dy: [N, C_out, H_out, W_out], channels_last, the gradient of a 1x1 convolution of y; with a mask, that of the
            ReLU which follows.
        mask: [N, C_out / 8, H_out, W_out] bytes, channels_last; D is dy where its bits are set. None: D is dy.
        x: [N, C, H, W], channels_last.
        stride: of the convolution.
        line: [3, C], mean, scale and shift of a BatchNorm: y is relu(bn(x)). None: y is x.
        centre: [C], in the precision of sums. None: zero.
        with_sums: compute the sums of D.

    Returns:
        products [splits, C_out, C] and, with `with_sums`, sums [splits, C_out].
    """
    columns, channels = int(dy.shape[1]), int(x.shape[1])
    pixels = Pixels.of(x, stride)
    plan = row_product_launch("row product", pixels.rows, columns, channels, x.dtype)
    sums_dtype = Matrix.of(x).sums
    products = x.new_empty((plan.runs, columns, channels), dtype=sums_dtype)
    sums = x.new_empty((plan.runs, columns), dtype=sums_dtype) if with_sums else None
    launch_kernel(
        _filter_gradient, plan.grid,
        products, sums, dy, mask, x, line, centre,
        pixels.rows, columns, channels, *pixels.geometry, plan.rows_per_run,
        STRIDE=stride, PRECISION=product_precision(x.dtype), COLUMN_BLOCKS=triton.cdiv(channels, plan.block_columns),
        BLOCK_INNER=plan.block_inner, BLOCK_ROWS=plan.block_rows, BLOCK_COLUMNS=plan.block_columns,
        num_warps=plan.num_warps, num_stages=plan.num_stages, chosen_for=plan.product,
        budget=lambda: Budget(
            read=dy.nbytes + (0 if mask is None else mask.nbytes) + pixels.rows * channels * x.itemsize,
            written=products.nbytes + (0 if sums is None else sums.nbytes),
            flops=2 * pixels.rows * columns * channels,
        ),
    )  # fmt: skip
    return products, sums


def merged_filter_gradient(dy: Tensor, x: Tensor, stride: int, like: Tensor) -> Tensor:
    """Compute dy^T x in the shape, strides and dtype of the filters [C_out, C, 1, 1] of a 1x1 convolution of x.

    Args:
        dy: [N, C_out, H_out, W_out], channels_last, the gradient of the convolution.
        x: [N, C, H, W], channels_last.
        stride: of the convolution.
        like: the filters.
    """
    product = product_of("row product", x.dtype, int(dy.shape[1]), int(x.shape[1]))
    if stride == 1 and by_library(product):
        gradient = x.new_empty((product.columns, product.inner))
        library_product(gradient, as_rows(dy).t(), as_rows(x), product)
    else:
        products, _ = filter_gradient(dy, None, x, stride)
        gradient = products.sum(0)
    return gradient.to(like.dtype).as_strided(like.shape, like.stride())
