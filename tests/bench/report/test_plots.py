"""The pictures of a report."""

from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from bench.record.metrics import frame
from bench.render import figures as render_figures
from bench.report import plots
from bench.report.order import records
from bench.types import Status
from tests.support.exhaustive import exhaustive
from tests.support.synthetic_runs import (
    CASE,
    failed,
    run,
    sweep,
)


def test_with_few_batches_bars_rank_the_paths_best_on_top() -> None:
    grid = sweep(models=("resnet18",), precisions=("fp32",), batches=(8,))
    figures = plots.figures(records(frame(grid)))
    names = [label.get_text() for label in figures["throughput"].axes[0].get_yticklabels()]
    assert names[-1] == "compile-max-autotune, fp32"
    assert names[0] == "eager, fp32"
    leanest = [label.get_text() for label in figures["memory"].axes[0].get_yticklabels()]
    assert leanest[-1] == "compile-max-autotune, fp32"
    widths = [bar.get_bbox().width for bar in figures["throughput"].axes[0].patches if isinstance(bar, Rectangle)]
    assert widths == sorted(widths)
    assert widths[0] == pytest.approx(8e3 / (0.9 + 0.06 * 8))


def test_with_many_batches_lines_run_over_them() -> None:
    grid = sweep(models=("resnet18",), precisions=("fp32", "bf16"), batches=(1, 8, 64), paths=("eager", "compile"))
    axes = plots.figures(records(frame(grid)))["throughput"].axes
    assert [axis.get_title() for axis in axes] == ["resnet18 inference", "resnet18 training"]
    assert [len(axis.lines) for axis in axes] == [4, 4]
    assert [np.asarray(line.get_xdata()).tolist() for line in axes[0].lines] == [[1, 8, 64]] * 4
    assert np.asarray(axes[0].lines[0].get_ydata()).tolist() == pytest.approx(
        [1e3 * b / (0.9 + 0.06 * b) for b in (1, 8, 64)]
    )


def test_colour_is_the_path_and_marker_the_precision() -> None:
    grid = sweep(models=("resnet18",), batches=(1, 8, 64), paths=("eager", "compile"))
    lines = plots.figures(records(frame(grid)))["throughput"].axes[0].lines
    assert len({line.get_color() for line in lines}) == 2
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 2
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 4


def test_more_than_two_precisions_take_a_facet_each() -> None:
    grid = sweep(models=("resnet18",), precisions=("fp32", "tf32", "bf16"), batches=(1, 8, 64), paths=("eager",))
    titles = [axis.get_title() for axis in plots.figures(records(frame(grid)))["throughput"].axes]
    assert titles[:3] == ["resnet18 inference, fp32", "resnet18 inference, tf32", "resnet18 inference, bf16"]


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    points = {"a": (10, 100.0), "b": (10, 90.0), "c": (20, 95.0), "d": (30, 200.0), "e": (40, 200.0), "f": (5, 1.0)}
    rows = [{"name": name, "peak_allocated_bytes": m, "images_per_s": s} for name, (m, s) in points.items()]
    assert [row["name"] for row in plots.frontier(rows)] == ["f", "a", "d"]


@pytest.mark.parametrize("batches", [(8,), *exhaustive((1, 8, 64))])
def test_pictures_are_not_blank_and_the_same_every_time(batches: tuple[int, ...]) -> None:
    grid = sweep(models=("resnet18",), batches=batches, paths=("eager", "compile"))

    def draw() -> dict[str, Figure]:
        return plots.figures(records(frame(grid)))

    drawn = draw()
    assert list(drawn) == ["throughput", "memory", "pareto"]
    for (name, figure), again in zip(drawn.items(), draw().values(), strict=True):
        svg, png = render_figures.encode(figure, "svg"), render_figures.encode(figure, "png")
        assert svg == render_figures.encode(again, "svg"), name
        assert name != "memory" or png == render_figures.encode(again, "png"), "drawn by the same code"
        assert b"<dc:date>" not in svg
        assert np.unique(imread(BytesIO(png)).reshape(-1, 4), axis=0).shape[0] > 10


def test_no_speed_no_pictures() -> None:
    assert plots.figures(records(frame(run(failed(CASE, Status.OOM, "too large"))))) == {}
