"""What kernels that multiply matrices share: how operands are made on their way in, and how a product is laid out.

A 1x1 convolution in channels_last is a product of rows [M, K] (one a pixel) by filters. An operand is read once and
made into what is multiplied in registers: normalised and rectified (*line*), centred, masked, rows skipped by a stride.
Everything is accumulated in fp32 (fp64 for fp64); an operand is rounded to its dtype before it is multiplied, as it
would be had it been stored.

`product_launch` and `row_product_launch` choose tiles (of `kernels.products.tiles`) and programs: plain functions of the
shape, the dtype and the architecture.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.batch_norm.normalise import kept, normalised
from kernels.products.tiles import Multiplied, Product, ProductPass, ProductTile, choice_for, tile_on
from kernels.launch.runtime import TRITON, architecture, require_runnable
from kernels.launch.tiles import unpack_bits

Precision = Literal["ieee", "tf32", "tf32x3"]


@triton.jit
def source_rows(rows, pixels, width, source_pixels, source_width, STRIDE: tl.constexpr):
    """The rows [R] (int64) of its input that rows [R] of the output of a 1x1 convolution are made of."""
    source = rows
    if STRIDE > 1:
        within = rows % pixels
        source = rows // pixels * source_pixels + within // width * STRIDE * source_width + within % width * STRIDE
    return source


@triton.jit
def spread_rows(rows, pixels, width, source_pixels, source_width, STRIDE: tl.constexpr):
    """The other way round: the rows [R] of the output that rows [R] of the input are part of, and which are of any."""
    output = rows
    part = rows >= 0
    if STRIDE > 1:
        within = rows % source_pixels
        h = within // source_width
        w = within % source_width
        part = (h % STRIDE == 0) & (w % STRIDE == 0)
        output = rows // source_pixels * pixels + h // STRIDE * width + w // STRIDE
    return output, part


@triton.jit
def on_line(x, line_ptr, channels, C):
    """BatchNorm of a tile [R, B] by a line [3, C] of mean, scale and shift. Loaded where used: else a register each."""
    known = channels < C
    mean = tl.load(line_ptr + channels, mask=known, other=0.0)
    scale = tl.load(line_ptr + C + channels, mask=known, other=0.0)
    shift = tl.load(line_ptr + 2 * C + channels, mask=known, other=0.0)
    return normalised(x, mean, scale, shift)


@triton.jit
def activation_tile(x_ptr, line_ptr, centre_ptr, rows, inside, channels, C):
    """A tile [R, B] of x [rows, C], relu(bn(x)) where there is a line [3, C], less the centre [C] where there is one.

    Zero outside. Each step is rounded to the dtype of x: what is centred is what would have been stored.
    """
    known = channels < C
    here = inside[:, None] & known[None, :]
    x = tl.load(x_ptr + (rows * C)[:, None] + channels[None, :], mask=here, other=0.0)
    if line_ptr is not None:
        y = on_line(x.to(line_ptr.dtype.element_ty), line_ptr, channels, C).to(x.dtype)
        x = tl.where(kept(y), y, 0.0)
    if centre_ptr is not None:
        centre = tl.load(centre_ptr + channels, mask=known, other=0.0)
        x = (x.to(centre.dtype) - centre[None, :]).to(x.dtype)
    if line_ptr is not None or centre_ptr is not None:
        x = tl.where(here, x, 0.0)
    return x


@triton.jit
def masked_tile(dy_ptr, mask_ptr, rows, inside, first, C, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """A tile [R, B] of dy [rows, C] from channel `first` on, zero where the ReLU that kept mask [rows, C / 8] was."""
    channels = first + tl.arange(0, BLOCK_CHANNELS)
    here = inside[:, None] & (channels < C)[None, :]
    dy = tl.load(dy_ptr + (rows * C)[:, None] + channels[None, :], mask=here, other=0.0)
    if mask_ptr is not None:
        packed = first // 8 + tl.arange(0, BLOCK_CHANNELS // 8)
        of_row = tl.cdiv(C, 8)
        bytes_here = inside[:, None] & (packed < of_row)[None, :]
        bits = tl.load(mask_ptr + (rows * of_row)[:, None] + packed[None, :], mask=bytes_here, other=0)
        dy = tl.where(unpack_bits(bits, BLOCK_ROWS, BLOCK_CHANNELS) != 0, dy, 0.0)
    return dy


@triton.jit
def filters_tile(filters_ptr, channels, columns, K, N, TRANSPOSED: tl.constexpr):
    """A tile [B, C] of filters: of a convolution's [N, K] (transposed), or of a matrix [K, N]."""
    here = (channels < K)[:, None] & (columns < N)[None, :]
    offsets = channels[:, None] * N + columns[None, :]
    if TRANSPOSED:
        offsets = channels[:, None] + columns[None, :] * K
    return tl.load(filters_ptr + offsets, mask=here, other=0.0)


@triton.jit
def activation_product(
    acc, x_ptr, line_ptr, centre_ptr, rows, inside, filters_ptr, columns, K, N,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc [R, C] + activations [rows, K] @ filters."""
    for start in range(0, K, BLOCK_K):
        channels = start + tl.arange(0, BLOCK_K)
        x = activation_tile(x_ptr, line_ptr, centre_ptr, rows, inside, channels, K)
        filters = filters_tile(filters_ptr, channels, columns, K, N, TRANSPOSED)
        acc = tl.dot(x, filters, acc, input_precision=PRECISION)
    return acc


@triton.jit
def masked_product(
    acc, dy_ptr, mask_ptr, rows, inside, filters_ptr, columns, K, N,
    PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc [R, C] + masked dy [rows, K] @ filters [K, N]."""
    for start in range(0, K, BLOCK_K):
        dy = masked_tile(dy_ptr, mask_ptr, rows, inside, start, K, BLOCK_ROWS, BLOCK_K)
        filters = filters_tile(filters_ptr, start + tl.arange(0, BLOCK_K), columns, K, N, False)
        acc = tl.dot(dy, filters, acc, input_precision=PRECISION)
    return acc


@triton.jit
def merged(parts_ptr, at, known, size, splits, MERGED: tl.constexpr):
    """The sum [B] over splits of parts [splits, size] at places [B], always in the same order."""
    total = tl.zeros([MERGED, at.shape[0]], dtype=parts_ptr.dtype.element_ty)
    for start in range(0, splits, MERGED):
        split = start + tl.arange(0, MERGED)
        inside = (split < splits)[:, None] & known[None, :]
        places = split.to(tl.int64)[:, None] * size + at[None, :]
        total += tl.load(parts_ptr + places, mask=inside, other=0.0)
    return tl.sum(total, axis=0)


class Pixels(NamedTuple):
    """Which rows of its input a 1x1 convolution takes: all, or of every image each stride-th of each stride-th line."""

    rows: int  # of the output, N * H_out * W_out
    pixels: int  # H_out * W_out
    width: int  # W_out
    source_pixels: int  # H * W
    source_width: int  # W
    stride: int

    @classmethod
    def of(cls, x: Tensor, stride: int = 1) -> "Pixels":
        """Of a 1x1 convolution of x [N, C, H, W]."""
        n, _, height, width = map(int, x.shape)
        out_height, out_width = -(-height // stride), -(-width // stride)
        return cls(n * out_height * out_width, out_height * out_width, out_width, height * width, width, stride)

    @property
    def geometry(self) -> tuple[int, int, int, int]:
        """What `source_rows` and `spread_rows` ask for besides the stride; nothing at 1: else a compilation a shape."""
        return (self.pixels, self.width, self.source_pixels, self.source_width) if self.stride > 1 else (0, 0, 0, 0)


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
