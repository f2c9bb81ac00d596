"""By which tiles, and on which units, a product is computed."""

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
DEEP = 256  # multiplied channels on either side: from here on a product is bound by arithmetic
WIDE = 128  # of the result of a row product: from here on a small tile would have its operands read again and again
MERGED_SPLITS = 16
LEAST_BLOCK = 16  # of any side of what tensor cores multiply
_FP64_PRODUCTS = (3, 8)  # 3.6 refuses them, 3.8 still fails to compile some
SPECIALISED = 16  # of what multiples the compiler knows


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
    product: Product  # that the tile was chosen for

    @property
    def grid(self) -> tuple[int, int]:
        """Neighbours read the same rows, which one of them finds in L2."""
        return (self.column_blocks, self.runs)


def product_launch(
    kind: ProductPass, rows: int, columns: int, inner: int, dtype: torch.dtype, *, whole_rows: bool = False
) -> ProductLaunch:
    """The launch of a product whose programs walk along its rows, each of one block of columns or of whole rows."""
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
    """What a tile is chosen for: see `Product`."""
    multiplied: Multiplied = "tf32" if product_precision(dtype) == "tf32" else "fp32"
    if dtype.itemsize == 2:  # noqa: PLR2004 - bytes
        deep = WIDE if kind in ("row product", "gram") else DEEP
        multiplied = "16 bits, deep" if min(columns, inner) >= deep else "16 bits"
    if scattered(columns) or scattered(inner):
        multiplied = "scattered"
    return Product(architecture().name, multiplied, kind, columns, inner)


def by_library(product: Product) -> bool:
    """Whether the tables say that a library computes a product, where it can."""
    return choice_for(product) == "library"


def product_tile(product: Product) -> ProductTile:
    """Its tile in a kernel of ours."""
    if product.machine == "interpreter":
        return INTERPRETED_PRODUCT
    choice = choice_for(product)
    return tile_on(*product[:3]) if choice == "library" else choice


def scattered(channels: int) -> bool:
    """Whether the compiler does not know a row's address to be aligned: every element has an address of its own."""
    return channels % SPECIALISED != 0


def multiplies(dtype: torch.dtype) -> bool:
    """Whether kernels can multiply matrices of a dtype here: of fp64 in the interpreter alone, if it is new enough."""
    return dtype != torch.float64 or (architecture().name == "interpreter" and TRITON >= _FP64_PRODUCTS)


def require_products(x: Tensor) -> None:
    """Refuse what Triton would refuse with a traceback.

    Raises:
        RuntimeError: kernels that multiply cannot run on this tensor, and what to do.
    """
    require_runnable(x.device)
    if not multiplies(x.dtype):
        raise RuntimeError("Triton has no products of fp64 matrices here: convert to fp32, or leave `gram` out")


def product_precision(dtype: torch.dtype) -> Precision:
    """How fp32 operands are multiplied: as `torch.set_float32_matmul_precision` says. Others have no choice."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"


def merged_at_once(splits: int) -> int:
    """How many splits of a sum over rows are read at a time: the same of few and of many, not to compile for each."""
    if architecture().name != "interpreter":
        return MERGED_SPLITS
    return min(MERGED_SPLITS, int(triton.next_power_of_2(splits)))


def small_block(most: int, of: int, *, interpreted: int = INTERPRETED_BLOCK) -> int:
    """The side of a block of what has no rows: at most `most`, but for the interpreter, where each program counts."""
    if architecture().name == "interpreter":
        return _block(interpreted, of)
    return _block(LEAST_BLOCK if scattered(of) else most, of)


def _block(most: int, of: int) -> int:
    return max(LEAST_BLOCK, min(most, int(triton.next_power_of_2(of))))


def row_product_launch(kind: ProductPass, rows: int, left: int, right: int, dtype: torch.dtype) -> ProductLaunch:
    """The launch of left^T [left, rows] @ right [rows, right], split along the rows: a run is one split.

    Of the launch, rows are those of the result, and inner is along the rows that are summed over.
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
