"""The search for tiles: what is tried, what comes out to be pasted, and a product by a library where that is chosen."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, get_args

import pytest
import torch
from click.testing import CliRunner

from bench.cli import main
from bench.kernels import search
from bench.kernels.operands import Launched, launches
from bench.kernels.ops import ops
from bench.kernels.report.trials import paste, tables
from bench.kernels.search import Question, questions, trials
from bench.kernels.types import Op, Request, Trial
from bench.workers.parent import Terms
from kernels.launch.passes import TILES, Pass, Tile
from kernels.products import tiles as product_tiles
from kernels.products.cublas import CUBLAS
from kernels.products.tiles import Product, ProductTile, choice_for

BLOCK = Op(form="bottleneck+downsampling", shape=(8, 256, 28, 28), dtype="bf16", mode="train")
MACHINE = "sm_90"
EVERY = search.CANDIDATES


@pytest.fixture(autouse=True, scope="module")
def few_candidates() -> Iterator[None]:
    """Each is a launch of everything: some of every number of warps, and of both numbers of columns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "CANDIDATES", EVERY[::7])
        patch.setattr(search, "PRODUCT_CANDIDATES", search.PRODUCT_CANDIDATES[::4])
        yield


def searched(*wanted: Op, timer: Callable[[Launched], float], budget_s: float | None = None) -> list[Trial]:
    """As for an H100, by an invented timer."""
    return list(trials(asked(wanted), timer, MACHINE, budget_s))


@cache
def asked(wanted: tuple[Op, ...]) -> list[Question]:
    return questions(wanted, MACHINE, MACHINE)


@cache
def of_equals() -> list[Trial]:
    """Of a block whose launches all take as long."""
    return searched(BLOCK, timer=lambda _: 1.0)


def found(timer: Callable[[Launched], float], budget_s: float | None = None) -> list[Trial]:
    """Of the passes of a small network."""
    wanted = ops(Request(models=("resnet18",), batch_size=8, image_size=64))
    return searched(*wanted, timer=timer, budget_s=budget_s)


def least_with(num_warps: int) -> Callable[[Launched], float]:
    """Fastest with so many warps, else the slower the more there are. A library has none."""

    def timer(launch: Launched) -> float:
        warps = launch.call.options.get("num_warps", 0)
        assert isinstance(warps, int)
        return 0.5 if warps == num_warps else 1.0 + warps / 100

    return timer


def pasted(of: list[Trial], table: str) -> Any:  # noqa: ANN401 - a dict
    """The lines of one table, read as Python would once they are pasted."""
    (lines,) = [lines for name, lines in paste(of).items() if name.startswith(table)]
    names = {"Tile": Tile, "Product": Product, "ProductTile": ProductTile}
    return eval("{\n" + "\n".join(lines) + "\n}", names)  # noqa: S307


def test_a_search_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Terms, "call", lambda _, _entry, *given: search.search(*given))
    result = CliRunner().invoke(main, ["kernels", "--search"], prog_name="resbench")
    assert result.exit_code == 2
    assert "--search times launches on a GPU, and torch finds no CUDA device here" in " ".join(result.stderr.split())


# --- passes over a tensor ---------------------------------------------------------------------------------------------


def test_every_candidate_is_tried_for_every_kind_of_pass() -> None:
    tried = found(lambda _: 1.0)
    assert all(32 * tile.num_warps * tile.programs <= 2048 for tile in EVERY), "resident threads of an SM"
    for kind in get_args(Pass):
        of_kind = [trial for trial in tried if trial.key == kind]
        shapes = {trial.op.key for trial in of_kind}
        assert 1 <= len(shapes) <= 3
        assert len(of_kind) == len(shapes) * len({TILES[kind], *search.CANDIDATES})
        assert {Tile(**trial.tile) for trial in of_kind if trial.present} == {TILES[kind]}


def test_the_fastest_tile_is_what_is_to_be_pasted() -> None:
    tried = found(least_with(4))
    tiles = pasted(tried, "TILES")
    assert tiles.keys() == TILES.keys()
    assert tiles["apply"].num_warps == 4
    lines = paste(tried)["TILES in kernels/launch/passes.py"]
    assert "# 56.9% less time than now" in lines[list(tiles).index("apply")], "0.5 ms and not 1.16"


def test_a_tile_that_is_hardly_better_is_not_exchanged() -> None:
    assert pasted(found(lambda launch: 0.995 if launch.call.options["num_warps"] == 4 else 1.0), "TILES") == TILES


def test_a_tile_that_does_not_run_is_a_line_with_its_reason() -> None:
    def timer(launch: Launched) -> float:
        if launch.call.options["num_warps"] == 16:
            raise RuntimeError("out of resource: shared memory\nRequired: many")
        return 1.0

    tried = found(timer)
    refused = [trial for trial in tried if trial.ms is None]
    assert {trial.reason for trial in refused} == {"RuntimeError: out of resource: shared memory"}
    rows: list[dict[str, Any]] = tables(tried)["apply"]
    assert [row["reason"] for row in rows if row["warps"] == 16 and not row["over best"]]
    line, *_ = paste(tried)["TILES in kernels/launch/passes.py"]
    assert "num_warps=16" not in line, "the present one is among those that do not run"


def test_a_search_ends_with_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 2.0, 61.0])
    monkeypatch.setattr(search, "monotonic", lambda: next(times))
    assert len(found(lambda _: 1.0, budget_s=60)) == 2


# --- products ---------------------------------------------------------------------------------------------------------


def products(op: Op) -> set[Product]:
    """What an op has tiles of its own for."""
    asked = [launch.call.chosen_for for launched in launches(op, MACHINE).values() for launch in launched]
    return {product for product in asked if isinstance(product, Product)}


def test_every_product_is_tried_at_its_shape_and_by_a_library_where_that_can() -> None:
    tried = [trial for trial in of_equals() if not isinstance(trial.key, str)]
    of = products(BLOCK)
    assert {product.kind for product in of} == {
        "conv", "gram", "block end dual", "row product", "inner gradient", "input gradient",
    }  # fmt: skip
    assert {trial.key for trial in tried} == of, "a Product is a tuple"
    for product in of:
        of_product = [trial for trial in tried if trial.key == product]
        tiles = [ProductTile(**trial.tile) for trial in of_product if trial.tile]
        assert set(tiles) == {choice_for(product), *search.PRODUCT_CANDIDATES}
        assert tiles[0] == choice_for(product)
        assert [trial.present for trial in of_product] == [True] + [False] * (len(of_product) - 1)
        by_library = product.kind == "conv" or product[2:] == ("row product", 128, 256)  # not what is masked
        assert len(of_product) == len(tiles) + by_library


def test_a_tile_is_launched_where_it_is_tried() -> None:
    seen: dict[tuple[object, ...], set[tuple[object, ...]]] = {}

    def timer(launch: Launched) -> float:
        options = launch.call.options
        if isinstance(launch.call.chosen_for, Product) and "num_stages" in options:
            seen.setdefault(launch.call.chosen_for, set()).add((options["num_warps"], options["num_stages"]))
        return 1.0

    searched(BLOCK, timer=timer)
    wanted = {(tile.num_warps, tile.num_stages) for tile in search.PRODUCT_CANDIDATES}
    assert seen.keys() == products(BLOCK)
    assert all(options >= wanted for options in seen.values())


def test_what_is_better_is_to_be_pasted_and_what_is_not_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def timer(launch: Launched) -> float:
        if launch.call.kernel is CUBLAS:
            return 0.1
        return 0.5 if launch.kind == "block_end" and launch.call.options["BLOCK_COLUMNS"] == 128 else 1.0

    tried = searched(BLOCK, timer=timer)
    found = pasted(tried, "SEARCHED")
    kinds = {product.kind: choice for product, choice in found.items()}
    assert kinds.keys() == {"block end dual", "row product"}, "statistics after a library's convolution take 1.0"
    assert kinds["row product"] == "library"
    assert kinds["block end dual"].columns == 128
    monkeypatch.setattr(product_tiles, "SEARCHED", found)
    again = [launch for launched in launches(BLOCK, MACHINE).values() for launch in launched]
    assert [launch.kind for launch in again].count("cublas") == 1
    assert [of.call.options["BLOCK_COLUMNS"] for of in again if of.kind == "block_end"] == [128]
    lines = tables(tried)[f"row product 128 x 256, 16 bits, deep, {MACHINE}"]
    assert (lines[0][""], lines[0]["µs at 8x256x28x28 bf16"]) == ("library", "100")


def test_a_library_that_is_slower_is_not_pasted() -> None:
    assert "SEARCHED in kernels/products/tiles.py" not in paste(of_equals())
