"""What one step of a product multiplies: tables, by pass, by operands and by architecture.

The figures were set by reasoning and by the audit, which has to find no spill on any architecture; no GPU has measured
them yet. `resbench kernels --search` does, shape by shape, and prints what to write into SEARCHED. Shallow products are
bound by memory: tiles so small that two or more programs are resident, of which one computes while another waits. Deep
ones are bound by arithmetic: large tiles, whose operands are read less often. `programs` is what the audit finds
resident of the variant that takes most registers.
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
    """What one step of a program multiplies, by how many threads, and how many such programs a multiprocessor holds.

    For a row product rows and columns are those of its result, and inner its rows. A gram's are as many.
    """

    rows: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int = 3
    programs: int = 1


PRODUCT_TILES: dict[ProductPass, ProductTile] = {  # of 16 bits, and of all that the other tables leave out
    "conv": ProductTile(rows=128, columns=64, inner=64, num_warps=4, programs=2),
    "block end": ProductTile(rows=64, columns=64, inner=64, num_warps=4, programs=2),
    "block end dual": ProductTile(rows=64, columns=64, inner=32, num_warps=4, num_stages=4, programs=2),
    "block chain": ProductTile(rows=128, columns=32, inner=128, num_warps=8),  # inner: as many as there are
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
    # more stages would copy what is turned about in shared memory element by element
    ("tf32", "row product"): ProductTile(rows=64, columns=64, inner=32, num_warps=4, num_stages=1, programs=3),
    ("tf32", "gram"): ProductTile(rows=64, columns=64, inner=32, num_warps=4, programs=3),
    ("fp32", "block end"): ProductTile(rows=64, columns=32, inner=32, num_warps=4, num_stages=2, programs=3),
    ("fp32", "block end dual"): ProductTile(rows=64, columns=32, inner=32, num_warps=4, num_stages=2, programs=2),
    ("fp32", "input gradient"): ProductTile(rows=64, columns=64, inner=32, num_warps=8, num_stages=2, programs=2),
    ("fp32", "inner gradient"): ProductTile(rows=64, columns=64, inner=16, num_warps=4, num_stages=2, programs=2),
    ("fp32", "row product"): ProductTile(rows=64, columns=64, inner=16, num_warps=8, num_stages=2, programs=2),
    ("fp32", "gram"): ProductTile(rows=64, columns=64, inner=16, num_warps=8, num_stages=2, programs=2),
}
TILES_FOR: dict[Multiplied, ProductTile] = {  # and every other pass
    "tf32": ProductTile(rows=64, columns=64, inner=32, num_warps=8, num_stages=2),
    "fp32": ProductTile(rows=64, columns=64, inner=16, num_warps=4, num_stages=2, programs=3),
    "scattered": ProductTile(rows=32, columns=32, inner=16, num_warps=4, num_stages=1, programs=2),
}
PRODUCT_TILES_ON: dict[tuple[str, Multiplied, ProductPass], ProductTile] = {  # where these spill, or leave much unused
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
    """What a tile is chosen for."""

    machine: str
    multiplied: Multiplied
    kind: ProductPass
    columns: int  # of the result: for a row product its rows, of the product's left side,
    inner: int  # and its columns, of the right side; else what is multiplied, a row


Choice = ProductTile | Literal["library"]  # see `kernels.products.cublas`

# Where another choice was measured to be faster than those of the tables above. The number of rows is no part of it:
# every program walks along as many as there are. Nothing has been measured yet.
SEARCHED: dict[Product, Choice] = {}

_instead: ContextVar[tuple[Product, Choice] | None] = ContextVar("instead", default=None)


@contextmanager
def chosen_instead(product: Product, choice: Choice) -> Iterator[None]:
    """Inside, a product is computed with another choice than that of the tables: to search for a better one."""
    token = _instead.set((product, choice))
    try:
        yield
    finally:
        _instead.reset(token)


def choice_for(product: Product) -> Choice:
    """The tile of a product, or that a library computes it, where it can."""
    instead = _instead.get()
    if instead is not None and instead[0] == product:
        return instead[1]
    return SEARCHED.get(product) or tile_on(product.machine, product.multiplied, product.kind)


def tile_on(machine: str, multiplied: Multiplied, kind: ProductPass) -> ProductTile:
    """The tile of a pass over such operands on an architecture, whatever the shape."""
    found = PRODUCT_TILES_ON.get((machine, multiplied, kind)) or TILES_OF.get((multiplied, kind))
    return found or TILES_FOR.get(multiplied) or PRODUCT_TILES[kind]
