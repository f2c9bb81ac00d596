"""Wrong formulas, planted in copies of the kernels: the other tests of fused BatchNorm have to see each.

A mutant is a copy of the modules with device code, in which one text is replaced, under a name and with ops of its own.
"""

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kernels.kernel import Kernel, Shape
from kernels.launch import passes
from tests.kernels.batch_norm import test_bn_mask
from tests.kernels.batch_norm import test_shapes as test_bn_shapes
from tests.kernels.batch_norm import test_statistics as test_bn_statistics
from tests.support import bn_cases
from tests.support.mutants import copied

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.usefixtures("one_thread", "small_tiles"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of NaN and infinity in the interpreter
]

COPIED = (
    "launch.tiles",
    "batch_norm.statistics",
    "batch_norm.normalise",
    "batch_norm.backward",
    "batch_norm.act",
    "batch_norm.pool",
    "table",
)

Check = Callable[[ModuleType], None]


SHAPE: Shape = bn_cases.MANY_RUNS if bn_cases.DEVICE == "cuda" else (2, 8, 13, 14)  # several runs of several tiles
FP16 = torch.float16


def parity(form: str, *, training: bool = True) -> Check:
    def check(table: ModuleType) -> None:
        kernel = table.KERNELS_BY_NAME[form]
        assert bn_cases.violations(kernel, bn_cases.operands_of(kernel, SHAPE), training) == []

    return check


def mask(form: str, maker: str, dtype: torch.dtype) -> Check:
    return lambda table: test_bn_mask.test_in_evaluation_gradient_passes_where_y_is_above_zero(
        table.KERNELS_BY_NAME[form], maker, dtype, channels_last=True
    )


def running(momentum: float | None, dtype: torch.dtype = torch.float32) -> Check:
    return lambda _: test_bn_statistics.test_running_statistics_are_those_of_batch_norm(5, momentum, dtype)


def ties(table: ModuleType) -> None:
    stem = table.KERNELS_BY_NAME["stem"]
    test_bn_shapes.test_of_equal_values_the_pool_takes_eagers(stem, (2, 3, 8, 8), channels_last=True)


def relu_at_zero(table: ModuleType) -> None:
    test_bn_shapes.test_relu_passes_nothing_at_zero(table.KERNELS_BY_NAME["bn+relu"], torch.float32)


def difference_first(table: ModuleType) -> None:
    test_bn_statistics.test_the_difference_is_taken_first(table.KERNELS_BY_NAME["bn"])


def far_from_zero(_: ModuleType) -> None:
    test_bn_statistics.test_hard_statistics("far from zero", "bn", SHAPE)


def not_a_number(table: ModuleType) -> None:
    relu = table.KERNELS_BY_NAME["bn+relu"]
    test_bn_shapes.test_nan_and_infinity_reach_what_they_reach_in_eager(relu, "nan", training=False)


def bad_value(_: ModuleType) -> None:
    test_bn_statistics.test_a_channel_with_a_bad_value_has_no_variance_at_all("bn", math.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """Text of a module, what stands there instead, and the test that sees it."""

    why: str
    module: str
    old: str
    new: str
    check: Check


MUTATIONS = (
    Mutation(
        why="a run is left out of the statistics",
        module="batch_norm.statistics", old="(run < runs)[:, None]", new="(run < runs - 1)[:, None]",
        check=parity("bn"),
    ),
    Mutation(
        why="the last run counts as a whole one",
        module="batch_norm.statistics", old="tl.minimum(rows - run.to(tl.int64) * rows_per_run, rows_per_run)",
        new="(run * 0 + rows_per_run)", check=parity("bn"),
    ),
    Mutation(
        why="runs that differ in their means add nothing to the variance",
        module="batch_norm.statistics", old="squares += spread + deviation * deviation * count",
        new="squares += spread",
        check=parity("bn"),
    ),
    Mutation(
        why="sums are not taken around a pivot",
        module="batch_norm.statistics", old="pivot = tl.sum(x, axis=0) /", new="pivot = 0.0 * tl.sum(x, axis=0) /",
        check=far_from_zero,
    ),
    Mutation(
        why="runs that are not there are merged",
        module="batch_norm.statistics", old="deviation = tl.where(inside, mean - pivot[None, :], 0.0)",
        new="deviation = mean - pivot[None, :]", check=parity("bn"),
    ),
    Mutation(
        why="the running variance is the biased one",
        module="batch_norm.statistics", old="tl.cast(count, acc) / tl.cast(count - 1, acc)", new="tl.cast(1, acc)",
        check=running(0.1),
    ),
    Mutation(
        why="momentum weighs the past",
        module="batch_norm.statistics", old="old_mean * (1 - momentum) + mean * momentum",
        new="old_mean * momentum + mean * (1 - momentum)", check=running(0.1),
    ),
    Mutation(
        why="the cumulative average counts one batch too many",
        module="batch_norm.statistics", old="1.0 / batches.to(acc)", new="1.0 / (batches + 1).to(acc)",
        check=running(None),
    ),
    Mutation(
        why="momentum is rounded to fp32",
        module="batch_norm.statistics", old="tl.full([1], MOMENTUM, dtype=acc)", new="MOMENTUM",
        check=running(0.1, torch.float64),
    ),
    Mutation(
        why="a variance that is not a number is none",
        module="batch_norm.statistics", old="tl.maximum(spread, 0.0, propagate_nan=tl.PropagateNan.ALL)",
        new="tl.where(spread > 0, spread, 0.0)", check=bad_value,
    ),
    Mutation(
        why="eps is forgotten",
        module="batch_norm.normalise", old="tl.rsqrt(var + EPS)", new="tl.rsqrt(var)", check=parity("dual"),
    ),
    Mutation(
        why="ReLU lets the gradient of zero pass",
        module="batch_norm.normalise", old="(y <= 0) == 0", new="(y < 0) == 0", check=relu_at_zero,
    ),
    Mutation(
        why="ReLU swallows NaN",
        module="batch_norm.normalise", old="(y <= 0) == 0", new="y > 0", check=not_a_number,
    ),
    Mutation(
        why="the bias is forgotten",
        module="batch_norm.normalise", old="if bias_ptr is not None", new="if bias_ptr is None", check=parity("bn"),
    ),
    Mutation(
        why="x is multiplied before the mean is subtracted",
        module="batch_norm.normalise", old="tl.fma(x - mean[None, :], scale[None, :], shift[None, :])",
        new="tl.fma(x, scale[None, :], (shift - mean * scale)[None, :])",
        check=difference_first,
    ),
    Mutation(
        why="the shortcut is normalised by x's statistics",
        module="batch_norm.act", old="normalised(z, z_mean, z_scale, z_shift)", new="normalised(z, mean, scale, shift)",
        check=parity("dual"),
    ),
    Mutation(
        why="the shortcut is forgotten",
        module="batch_norm.act", old="y += z\n", new="y += 0 * z\n", check=parity("bn+residual+relu"),
    ),
    Mutation(
        why="bits of the mask are in the wrong order",
        module="launch.tiles", old="bits << tl.arange(0, 8)", new="bits << (7 - tl.arange(0, 8))",
        check=parity("bn+residual+relu"),
    ),
    Mutation(
        why="a tile of each run is not walked in forward",
        module="batch_norm.act", old="(tiles - 1 - step)", new="(tiles - step)", check=parity("bn+relu"),
    ),
    Mutation(
        why="a tile of each run is not walked in backward",
        module="batch_norm.backward", old="(tiles - 1 - step)", new="(tiles - step)", check=parity("bn+relu"),
    ),
    Mutation(
        why="dx has no mean term",
        module="batch_norm.backward", old=", -scale * sum_g / rows", new=", 0 * sum_g", check=parity("bn"),
    ),
    Mutation(
        why="dx has no term along x",
        module="batch_norm.backward", old="return -scale * rstd * sum_along / rows", new="return 0 * sum_along",
        check=parity("bn+relu"),
    ),
    Mutation(
        why="the gradient of the weight is not normalised",
        module="batch_norm.backward", old="tl.sum(along_x, axis=0) * rstd", new="tl.sum(along_x, axis=0)",
        check=parity("bn"),
    ),
    Mutation(
        why="weight and bias exchange gradients in evaluation",
        module="batch_norm.backward", old="(totals[1], totals[0],", new="(totals[0], totals[1],",
        check=parity("bn", training=False),
    ),
    Mutation(
        why="the weight is forgotten in evaluation's dx",
        module="batch_norm.backward", old="(g * scale[None, :]).to(dx_ptr", new="(g * rstd[None, :]).to(dx_ptr",
        check=parity("bn+relu", training=False),
    ),
    Mutation(
        why="the residual's gradient is not masked",
        module="batch_norm.backward", old="tl.store(dz_ptr + offsets, g.to(",
        new="tl.store(dz_ptr + offsets, (g + 1).to(",
        check=parity("bn+residual+relu"),
    ),
    Mutation(
        why="the shortcut's gradient takes x's sums",
        module="batch_norm.backward", old="_line(sum_g, z_sum_along, z_rstd, z_scale, count)",
        new="_line(sum_g, sum_along, z_rstd, z_scale, count)", check=parity("dual"),
    ),
    Mutation(
        why="the mask is found again with another rounding",
        module="batch_norm.backward", old="normalised(x, mean, scale, shift).to(ROUNDED)",
        new="normalised(x, mean, scale, shift)", check=mask("bn+relu", "small", FP16),
    ),
    Mutation(
        why="the mask is found again by another order of operations",
        module="batch_norm.backward", old="normalised(x, mean, scale, shift).to(ROUNDED)",
        new="(x * scale[None, :] + (shift - mean * scale)[None, :]).to(ROUNDED)",
        check=mask("bn+relu", "around zero", FP16),
    ),
    Mutation(
        why="a pixel in four windows gets three gradients",
        module="batch_norm.backward", old="tl.static_range(4)", new="tl.static_range(3)", check=parity("stem"),
    ),
    Mutation(
        why="of equal values the pool takes the last",
        module="batch_norm.pool", old="(y > best)", new="(y >= best)", check=ties,
    ),
    Mutation(
        why="windows are not padded",
        module="batch_norm.pool", old="top = pixel // OW * 2 - 1", new="top = pixel // OW * 2", check=parity("stem"),
    ),
    Mutation(
        why="what ReLU has killed gets a gradient through the pool",
        module="batch_norm.pool", old="tl.where(active, tap, _DEAD)", new="tap", check=parity("stem"),
    ),
)  # fmt: skip


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several runs of several tiles, as large tensors have them."""
    tile = passes.Tile(kibibytes=1, num_warps=1)
    monkeypatch.setattr(passes, "INTERPRETED_TILE", tile)


@contextmanager
def changed(folder: Path, module: str = "", old: str = "", new: str = "") -> Iterator[ModuleType]:
    """The table of a copy of the kernels in which a text is replaced, in place of the kernels' own in the tests."""
    with copied(folder, COPIED, module, old, new) as name, pytest.MonkeyPatch.context() as patch:
        table, act, pool, statistics = (
            importlib.import_module(f"{name}.{copy}")
            for copy in ("table", "batch_norm.act", "batch_norm.pool", "batch_norm.statistics")
        )
        patch.setattr(bn_cases, "act", act)
        patch.setattr(bn_cases, "pool", pool)
        patch.setattr(test_bn_statistics, "update_running_statistics", statistics.update_running_statistics)
        yield table


def test_a_copy_without_a_mutation_passes_every_check(tmp_path: Path) -> None:
    with changed(tmp_path) as table:
        assert len(table.KERNELS) == 5
        assert all(isinstance(kernel, Kernel) for kernel in table.KERNELS)
        for mutation in MUTATIONS:
            mutation.check(table)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.why)
def test_a_mutation_is_seen(mutation: Mutation, tmp_path: Path) -> None:
    with (
        changed(tmp_path, mutation.module, mutation.old, mutation.new) as table,
        pytest.raises(AssertionError),
    ):
        mutation.check(table)
