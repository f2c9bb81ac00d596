"""Which tile a product gets, by its shape, its dtype and the architecture. Whether one spills is the audit's to say."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import pytest
import torch

from kernels.launch.runtime import ARCHITECTURES, recorded
from kernels.products.plans import ProductLaunch, merged_at_once, product_launch, row_product_launch, small_block
from kernels.products.tiles import Multiplied, ProductPass, tile_on

ROWS = 256 * 14**2
MACHINES = [name for name in ARCHITECTURES if name != "interpreter"]


@contextmanager
def in_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def sides(plan: ProductLaunch) -> tuple[int, int, int]:
    return plan.block_rows, plan.block_columns, plan.block_inner


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("multiplied", get_args(Multiplied))
@pytest.mark.parametrize("kind", get_args(ProductPass))
def test_every_pass_has_a_tile(machine: str, multiplied: Multiplied, kind: ProductPass) -> None:
    tile = tile_on(machine, multiplied, kind)
    for side in (tile.rows, tile.columns, tile.inner):
        assert side >= 16
        assert side & (side - 1) == 0
    assert kind != "gram" or tile.rows == tile.columns, "the blocks of a symmetric matrix are square"
    assert 32 * tile.num_warps * tile.programs <= ARCHITECTURES[machine].threads


def test_deep_products_have_larger_tiles_than_shallow_ones() -> None:
    with recorded("sm_90"):
        shallow = product_launch("conv", ROWS, 64, 2048, torch.bfloat16)
        deep = product_launch("conv", ROWS, 256, 256, torch.bfloat16)
        narrow = row_product_launch("gram", ROWS, 64, 64, torch.bfloat16)
        wide = row_product_launch("gram", ROWS, 128, 128, torch.bfloat16)
    assert (sides(shallow), shallow.num_warps) == ((128, 64, 64), 4)
    assert (sides(deep), deep.num_warps) == ((128, 128, 64), 8)
    assert (narrow.block_columns, wide.block_columns) == (64, 128)


def test_every_resident_program_has_work_and_none_a_row_too_many() -> None:
    with recorded("sm_90"):
        plan = product_launch("block end", ROWS, 512, 128, torch.bfloat16)
    programs = 2 * ARCHITECTURES["sm_90"].multiprocessors
    assert programs // 2 < plan.runs * plan.column_blocks <= programs
    assert plan.rows_per_run % plan.block_rows == 0
    assert (plan.runs - 1) * plan.rows_per_run < ROWS <= plan.runs * plan.rows_per_run


@pytest.mark.parametrize("channels", [(76, 256), (256, 76)])
def test_rows_that_are_not_aligned_have_small_tiles(channels: tuple[int, int]) -> None:
    """Every element has an address of its own, which takes registers."""
    with recorded("sm_90"):
        for dtype in (torch.bfloat16, torch.float32):
            assert sides(product_launch("conv", ROWS, *channels, dtype)) == (32, 32, 16)
            assert sides(row_product_launch("row product", ROWS, *channels, dtype)) == (32, 32, 16)
        assert (small_block(64, 76), small_block(64, 80)) == (16, 64)


def test_fp32_has_tiles_of_its_own_and_in_tf32_others() -> None:
    with recorded("sm_90"):
        exact = product_launch("block end", ROWS, 256, 64, torch.float32)
        with in_tf32():
            faster = product_launch("block end", ROWS, 256, 64, torch.float32)
    assert (sides(exact), sides(faster)) == ((64, 32, 32), (64, 64, 32))


def test_an_architecture_can_have_another_tile() -> None:
    found = {}
    for machine in MACHINES:
        with recorded(machine):
            found[machine] = sides(product_launch("conv", ROWS, 256, 1024, torch.bfloat16))
    assert found == {"sm_80": (128, 128, 64), "sm_90": (128, 128, 64), "sm_100": (128, 64, 64)}


def test_splits_are_merged_alike_on_a_gpu_however_many_there_are() -> None:
    """Else each number of them would be compiled for."""
    with recorded("sm_90"):
        assert {merged_at_once(splits) for splits in (1, 3, 16, 132)} == {16}
    with recorded("interpreter"):
        assert [merged_at_once(splits) for splits in (1, 3, 16, 132)] == [1, 4, 16, 16]
