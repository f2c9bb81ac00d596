"""Launch configurations of products: plain functions of the shape, the dtype and the architecture."""

from dataclasses import dataclass
from typing import Literal

import torch
import triton
from torch import Tensor

from kernels.launch.runtime import TRITON, architecture, require_runnable
from kernels.products.tiles import Multiplied, Product, ProductPass, ProductTile, choice_for, tile_on

Precision = Literal["ieee", "tf32", "tf32x3"]


INTERPRETED_PRODUCT = ProductTile(rows=512, columns=512, inner=512, num_warps=1, num_stages=1)
INTERPRETED_BLOCK = 512
DEEP = 256  # channels on both sides: from here on a product is bound by arithmetic
WIDE = 128  # sides of a row product's result: from here on small tiles would read their operands too often
MERGED_SPLITS = 16
LEAST_BLOCK = 16  # the smallest side of an operand of tensor cores
_FP64_PRODUCTS = (3, 8)  # Triton 3.6 refuses them; 3.8 fails to compile some for GPUs
SPECIALISED = 16  # multiples of this are known to the compiler


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductLaunch:
    """One product [rows, inner] @ [inner, columns]; each program walks a run of rows of one block of columns."""

    block_rows: int
    block_columns: int
    block_inner: int
    num_warps: int
    num_stages: int
    runs: int  # programs along the rows
    rows_per_run: int  # a multiple of block_rows
    column_blocks: int
    product: Product  # for which the tile was chosen

    @property
    def grid(self) -> tuple[int, int]:
        """Neighbouring programs read the same rows, the second time from L2."""
        return (self.column_blocks, self.runs)


def product_launch(
    kind: ProductPass, rows: int, columns: int, inner: int, dtype: torch.dtype, *, whole_rows: bool = False
) -> ProductLaunch:
    """Configure a product whose programs walk along its rows, each for one block of columns or for whole rows."""
    product = product_of(kind, dtype, columns, inner)
    tile = product_tile(product)
    block_rows, block_columns = _block(tile.rows, rows), _block(tile.columns, columns)
    column_blocks = 1 if whole_rows else triton.cdiv(columns, block_columns)
    runs = max(1, architecture().multiprocessors * tile.programs // column_blocks)
    rows_per_run = triton.cdiv(triton.cdiv(rows, runs), block_rows) * block_rows
    return ProductLaunch(
        block_rows=block_rows,
        block_columns=block_columns,
        block_inner=_block(tile.inner, inner),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        runs=triton.cdiv(rows, rows_per_run),
        rows_per_run=rows_per_run,
        column_blocks=column_blocks,
        product=product,
    )


def product_of(kind: ProductPass, dtype: torch.dtype, columns: int, inner: int) -> Product:
    """Describe a product as the key of the tables of tiles."""
    multiplied: Multiplied = "tf32" if product_precision(dtype) == "tf32" else "fp32"
    if dtype.itemsize == 2:  # noqa: PLR2004 - bytes
        deep = WIDE if kind in ("row product", "gram") else DEEP
        multiplied = "16 bits, deep" if min(columns, inner) >= deep else "16 bits"
    if scattered(columns) or scattered(inner):
        multiplied = "scattered"
    return Product(architecture().name, multiplied, kind, columns, inner)


def by_library(product: Product) -> bool:
    """Whether the tables choose a library for a product, where it can compute it."""
    return choice_for(product) == "library"


def product_tile(product: Product) -> ProductTile:
    """Return the tile for a product in a Triton kernel."""
    if product.machine == "interpreter":
        return INTERPRETED_PRODUCT
    choice = choice_for(product)
    return tile_on(*product[:3]) if choice == "library" else choice


def scattered(channels: int) -> bool:
    """Whether the compiler cannot know that rows are aligned, so that every element has an address of its own."""
    return channels % SPECIALISED != 0


def multiplies(dtype: torch.dtype) -> bool:
    """Whether kernels can multiply matrices of a dtype here: fp64 only in the interpreter, from Triton 3.8 on."""
    return dtype != torch.float64 or (architecture().name == "interpreter" and TRITON >= _FP64_PRODUCTS)


def require_products(x: Tensor) -> None:
    """Refuse with an explanation what Triton would refuse with a traceback.

    Raises:
        RuntimeError: kernels with products cannot run on this tensor; the message says what to do.
    """
    require_runnable(x.device)
    if not multiplies(x.dtype):
        raise RuntimeError(
            "Triton cannot multiply fp64 matrices here: convert model and input to fp32, or fuse without gram"
        )


def product_precision(dtype: torch.dtype) -> Precision:
    """Return how to multiply: fp32 as `torch.set_float32_matmul_precision` says, other dtypes in the only way."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"


def merged_at_once(splits: int) -> int:
    """Return how many splits of a sum to read at a time: constant on GPUs, lest kernels be compiled for each number."""
    if architecture().name != "interpreter":
        return MERGED_SPLITS
    return min(MERGED_SPLITS, int(triton.next_power_of_2(splits)))


def small_block(most: int, size: int, *, interpreted: int = INTERPRETED_BLOCK) -> int:
    """Choose the side of a block of a matrix without rows: up to `most`, or `interpreted` where programs are slow."""
    if architecture().name == "interpreter":
        return _block(interpreted, size)
    return _block(LEAST_BLOCK if scattered(size) else most, size)


def _block(most: int, size: int) -> int:
    return max(LEAST_BLOCK, min(most, int(triton.next_power_of_2(size))))


def row_product_launch(kind: ProductPass, rows: int, left: int, right: int, dtype: torch.dtype) -> ProductLaunch:
    """Configure left^T [left, rows] @ right [rows, right], split along the rows: a run is one split.

    In the launch, `block_rows` is along the rows of the result, `block_inner` along the rows that are summed over.
    """
    product = product_of(kind, dtype, left, right)
    tile = product_tile(product)
    block_rows, block_columns, block_inner = (
        _block(tile.rows, left),
        _block(tile.columns, right),
        _block(tile.inner, rows),
    )
    blocks = triton.cdiv(left, block_rows) * triton.cdiv(right, block_columns)
    busy = triton.cdiv(left, block_rows) * (triton.cdiv(left, block_rows) + 1) // 2 if kind == "gram" else blocks
    splits = max(1, architecture().multiprocessors * tile.programs // busy)
    rows_per_split = triton.cdiv(triton.cdiv(rows, splits), block_inner) * block_inner
    narrowest, wide = block_inner * min(block_rows, block_columns), 16 // dtype.itemsize  # elements of 128 bits
    return ProductLaunch(
        block_rows=block_rows,
        block_columns=block_columns,
        block_inner=block_inner,
        num_warps=max(1, min(tile.num_warps, narrowest // (32 * wide))),
        num_stages=tile.num_stages,
        runs=triton.cdiv(rows, rows_per_split),
        rows_per_run=rows_per_split,
        column_blocks=blocks,
        product=product,
    )
