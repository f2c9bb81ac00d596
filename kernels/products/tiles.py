"""Tables of the tiles of products, by pass, operands and architecture.

The figures were set by reasoning and by the audit, which may find no spill on any architecture; they have not been
measured on a GPU yet. `resbench kernels --search` does that, shape by shape, and prints the rows to add to SEARCHED.
Shallow products are bound by memory: their tiles are so small that two or more programs are resident, of which one
computes while another waits. Deep ones are bound by arithmetic: their tiles are large, so that operands are read less
often. `programs` is the number that the audit finds resident of the variant that takes most registers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, NamedTuple

ProductPass = Literal[
    "conv", "block end", "block end dual", "block chain", "inner gradient", "input gradient", "row product", "gram"
]
Multiplied = Literal["16 bits", "16 bits, deep", "tf32", "fp32", "scattered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductTile:
    """The size of one step of a program, the warps of the program, and the programs resident per multiprocessor.

    For a row product, rows and columns are those of its result, and inner the rows that it sums over; for a gram, rows
    and columns are equal.
    """

    rows: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int = 3
    programs: int = 1


PRODUCT_TILES: dict[ProductPass, ProductTile] = {  # for 16 bits, and for all that is not in the other tables
    "conv": ProductTile(rows=128, columns=64, inner=64, num_warps=4, programs=2),
    "block end": ProductTile(rows=64, columns=64, inner=64, num_warps=4, programs=2),
    "block end dual": ProductTile(rows=64, columns=64, inner=32, num_warps=4, num_stages=4, programs=2),
    "block chain": ProductTile(rows=128, columns=32, inner=128, num_warps=8),  # inner: always all channels
    "inner gradient": ProductTile(rows=128, columns=64, inner=32, num_warps=8, num_stages=4),
    "input gradient": ProductTile(rows=64, columns=64, inner=64, num_warps=4, programs=3),
    "row product": ProductTile(rows=128, columns=64, inner=64, num_warps=4, programs=2),
    "gram": ProductTile(rows=64, columns=64, inner=32, num_warps=4, num_stages=4, programs=2),
}
TILES_OF: dict[tuple[Multiplied, ProductPass], ProductTile] = {
    ("16 bits, deep", "conv"): ProductTile(rows=128, columns=128, inner=64, num_warps=8),
    ("16 bits, deep", "block end"): ProductTile(rows=128, columns=128, inner=32, num_warps=8, num_stages=4),
    ("16 bits, deep", "block end dual"): ProductTile(rows=128, columns=64, inner=64, num_warps=8),
    ("16 bits, deep", "input gradient"): ProductTile(rows=128, columns=128, inner=64, num_warps=8),
    ("16 bits, deep", "row product"): ProductTile(rows=128, columns=128, inner=64, num_warps=8),
    ("16 bits, deep", "gram"): ProductTile(rows=128, columns=128, inner=64, num_warps=8),
    ("tf32", "block chain"): ProductTile(rows=64, columns=32, inner=128, num_warps=8, num_stages=2),
    ("tf32", "conv"): ProductTile(rows=64, columns=64, inner=32, num_warps=4, programs=2),
    ("tf32", "input gradient"): ProductTile(rows=64, columns=64, inner=32, num_warps=8, num_stages=2, programs=2),
    # with more stages the transposed operand would be copied through shared memory element by element
    ("tf32", "row product"): ProductTile(rows=64, columns=64, inner=32, num_warps=4, num_stages=1, programs=3),
    ("tf32", "gram"): ProductTile(rows=64, columns=64, inner=32, num_warps=4, programs=3),
    ("fp32", "block end"): ProductTile(rows=64, columns=32, inner=32, num_warps=4, num_stages=2, programs=3),
    ("fp32", "block end dual"): ProductTile(rows=64, columns=32, inner=32, num_warps=4, num_stages=2, programs=2),
    ("fp32", "input gradient"): ProductTile(rows=64, columns=64, inner=32, num_warps=8, num_stages=2, programs=2),
    ("fp32", "inner gradient"): ProductTile(rows=64, columns=64, inner=16, num_warps=4, num_stages=2, programs=2),
    ("fp32", "row product"): ProductTile(rows=64, columns=64, inner=16, num_warps=8, num_stages=2, programs=2),
    ("fp32", "gram"): ProductTile(rows=64, columns=64, inner=16, num_warps=8, num_stages=2, programs=2),
}
TILES_FOR: dict[Multiplied, ProductTile] = {  # for every other pass
    "tf32": ProductTile(rows=64, columns=64, inner=32, num_warps=8, num_stages=2),
    "fp32": ProductTile(rows=64, columns=64, inner=16, num_warps=4, num_stages=2, programs=3),
    "scattered": ProductTile(rows=32, columns=32, inner=16, num_warps=4, num_stages=1, programs=2),
}
PRODUCT_TILES_ON: dict[tuple[str, Multiplied, ProductPass], ProductTile] = {  # where those spill, or leave much unused
    ("sm_80", "16 bits, deep", "row product"): ProductTile(rows=128, columns=128, inner=32, num_warps=8, num_stages=4),
    ("sm_90", "16 bits", "input gradient"): ProductTile(rows=128, columns=64, inner=64, num_warps=8, programs=2),
    ("sm_90", "fp32", "row product"): ProductTile(rows=64, columns=64, inner=32, num_warps=8, num_stages=2, programs=2),
    ("sm_100", "16 bits", "conv"): ProductTile(rows=64, columns=64, inner=64, num_warps=4, programs=2),
    ("sm_100", "16 bits", "block end dual"): ProductTile(rows=128, columns=64, inner=32, num_warps=8, num_stages=4),
    ("sm_100", "16 bits", "block chain"): ProductTile(rows=64, columns=32, inner=128, num_warps=8),
    ("sm_100", "tf32", "block chain"): ProductTile(rows=32, columns=32, inner=128, num_warps=8, num_stages=2),
    ("sm_100", "16 bits, deep", "conv"): ProductTile(rows=128, columns=64, inner=64, num_warps=8),
    ("sm_100", "16 bits, deep", "block end"): ProductTile(rows=128, columns=64, inner=64, num_warps=8),
    ("sm_100", "16 bits, deep", "block end dual"): ProductTile(
        rows=128, columns=64, inner=32, num_warps=8, num_stages=4
    ),
    ("sm_100", "16 bits, deep", "input gradient"): ProductTile(
        rows=128, columns=128, inner=32, num_warps=8, num_stages=4
    ),
}


class Product(NamedTuple):
    """The key by which a tile is chosen."""

    machine: str
    multiplied: Multiplied
    kind: ProductPass
    columns: int  # of the result; for a row product, the rows of the result
    inner: int  # multiplied per row; for a row product, the columns of the result


Choice = ProductTile | Literal["library"]  # see `kernels.products.cublas`

# Choices that were measured to be faster than those of the tables above. The number of rows is not part of the key:
# programs walk along however many there are. Nothing has been measured yet.
SEARCHED: dict[Product, Choice] = {}

_override: ContextVar[tuple[Product, Choice] | None] = ContextVar("override", default=None)


@contextmanager
def chosen_instead(product: Product, choice: Choice) -> Iterator[None]:
    """Override the choice for a product inside the context, to search for a better one than the tables have."""
    token = _override.set((product, choice))
    try:
        yield
    finally:
        _override.reset(token)


def choice_for(product: Product) -> Choice:
    """Return the tile of a product, or "library" for a library that computes it where it can."""
    override = _override.get()
    if override is not None and override[0] == product:
        return override[1]
    return SEARCHED.get(product) or tile_on(product.machine, product.multiplied, product.kind)


def tile_on(machine: str, multiplied: Multiplied, kind: ProductPass) -> ProductTile:
    """Return the tile of a pass over such operands on an architecture, whatever the shape."""
    tile = PRODUCT_TILES_ON.get((machine, multiplied, kind)) or TILES_OF.get((multiplied, kind))
    return tile or TILES_FOR.get(multiplied) or PRODUCT_TILES[kind]
