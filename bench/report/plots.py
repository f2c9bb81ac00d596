"""The pictures of a report. Matplotlib's object API: no pyplot, so no global state and no display.

Colour says the path, marker and line style say the precision, in every picture. With fewer than three batch sizes a
line says nothing: bars compare the paths instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.record.metrics import METRICS_BY_NAME
from bench.render.figures import FRONTIER, PLAIN, STYLE, facets, scale
from bench.render.records import Record, grouped
from bench.render.text import significant
from bench.report.order import measured, setup, setup_name, varying
from bench.report.series import LINES, batch_ticks, colour, legend, style

LINE_BATCHES = 3  # from this many batch sizes on, batch is an axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One file of the plots folder, without its suffix."""

    name: str
    title: str
    column: str  # what it shows: rows without a value there are not in it
    draw: Callable[[list[Record]], Figure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A column as an axis."""

    column: str
    label: str
    scale: float = 1.0
    ends: tuple[str, str] | None = None  # columns of the interval


def drawable(rows: list[Record]) -> tuple[Picture, ...]:
    """The pictures for which the rows have data."""
    timed = measured(rows)
    return tuple(picture for picture in PICTURES if any(row[picture.column] is not None for row in timed))


def figures(rows: list[Record]) -> dict[str, Figure]:
    """The drawn pictures by name."""
    timed = measured(rows)
    with mpl.rc_context(STYLE):
        return {
            picture.name: picture.draw([row for row in timed if row[picture.column] is not None])
            for picture in drawable(rows)
        }


def _throughput(rows: list[Record]) -> Figure:
    ends = ("images_per_s_low", "images_per_s_high")
    return _by_batch(rows, Quantity(column="images_per_s", label="throughput (img/s)", ends=ends))


def _memory(rows: list[Record]) -> Figure:
    return _by_batch(rows, _memory_axis(rows))


def _memory_axis(rows: list[Record]) -> Quantity:
    unit, divisor = ("GiB", 2**30) if max(row["peak_allocated_bytes"] for row in rows) >= 2**30 else ("MiB", 2**20)
    return Quantity(column="peak_allocated_bytes", label=f"peak memory ({unit})", scale=1 / divisor)


def _by_batch(rows: list[Record], quantity: Quantity) -> Figure:
    if len({row["batch_size"] for row in rows}) >= LINE_BATCHES:
        return _lines(rows, quantity)
    return _bars(rows, quantity)


def _bars(rows: list[Record], quantity: Quantity) -> Figure:
    """A facet for each setup and batch: a bar for each path and precision, the best on top."""
    groups = grouped(rows, lambda row: (*setup(row), row["batch_size"]))
    tallest = max(len(group) for _, group in groups)
    figure, axes = facets(len(groups), height=0.9 + 0.27 * tallest)
    shown = varying(rows)
    for axis, (_, group) in zip(axes, groups, strict=True):
        worst_first = METRICS_BY_NAME[quantity.column].better == "higher"
        ordered = sorted(group, key=lambda row: row[quantity.column], reverse=not worst_first)
        for place, row in enumerate(ordered):
            _bar(axis, place, row, quantity)
        axis.set_yticks(range(len(ordered)), [_series_name(row) for row in ordered])
        axis.set_ylim(len(ordered) - tallest - 0.6, len(ordered) - 0.4)
        axis.set_title(f"{setup_name(group[0], shown)}, batch {group[0]['batch_size']}")
        axis.set_xlabel(quantity.label)
        axis.grid(visible=False, axis="y")
        axis.margins(x=0.18)  # room for the figures at the ends of the bars
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(PLAIN)
    return figure


def _bar(axis: Axes, place: int, row: Record, quantity: Quantity) -> None:
    value = row[quantity.column] * quantity.scale
    low, high = (row[end] * quantity.scale for end in quantity.ends) if quantity.ends else (value, value)
    axis.barh(place, value, height=0.72, color=colour(row["path"]))
    if quantity.ends:
        axis.errorbar(value, place, xerr=[[value - low], [high - value]], color="black", capsize=2, linewidth=0.9)
    label = f"{significant(value)}"
    axis.annotate(label, (high, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)


def _lines(rows: list[Record], quantity: Quantity) -> Figure:
    """A facet for each setup: a line over the batch sizes for each path and precision.

    More than two precisions take a facet each, or the lines could not be told apart.
    """
    split = len({row["precision"] for row in rows}) > 2  # noqa: PLR2004 - see above
    groups = grouped(rows, lambda row: (*setup(row), row["precision"] if split else ""))
    figure, axes = facets(len(groups), height=3.2)
    shown = varying(rows)
    for axis, (_, group) in zip(axes, groups, strict=True):
        for _, series in grouped(group, lambda row: (row["precision"], row["path"])):
            _line(axis, series, quantity)
        axis.set_title(setup_name(group[0], shown) + (f", {group[0]['precision']}" if split else ""))
        axis.set_xlabel("batch size")
        axis.set_ylabel(quantity.label)
        batch_ticks(axis, group)
        scale(axis, "y", [row[quantity.column] for row in group])
    legend(figure, rows, lines=True)
    return figure


def _line(axis: Axes, series: list[Record], quantity: Quantity) -> None:
    batches = [row["batch_size"] for row in series]
    values = [row[quantity.column] * quantity.scale for row in series]
    axis.plot(
        batches,
        values,
        linewidth=1.4,
        markersize=4.5,
        linestyle=LINES.get(series[0]["precision"], "-"),
        **style(series[0]),
    )
    if quantity.ends:
        low, high = ([row[end] * quantity.scale for row in series] for end in quantity.ends)
        axis.fill_between(batches, low, high, color=colour(series[0]["path"]), alpha=0.2, linewidth=0)


def _pareto(rows: list[Record]) -> Figure:
    """A facet for each setup: up and to the left is better; the line joins what nothing beats in both."""
    groups = grouped(rows, setup)
    figure, axes = facets(len(groups), height=3.4)
    shown, memory = varying(rows), _memory_axis(rows)
    several = len({row["batch_size"] for row in rows}) > 1
    for axis, (_, group) in zip(axes, groups, strict=True):
        best = frontier(group)
        _frontier_line(axis, best, memory)
        for row in group:
            edge = "black" if row in best else "white"
            point = (row[memory.column] * memory.scale, row["images_per_s"])
            axis.plot(*point, linestyle="", markersize=6, markeredgecolor=edge, markeredgewidth=0.8, **style(row))
        axis.set_title(setup_name(group[0], shown) + ("" if several else f", batch {group[0]['batch_size']}"))
        axis.set_xlabel(memory.label)
        axis.set_ylabel("throughput (img/s)")
        axis.margins(0.08)
        scale(axis, "x", [row[memory.column] for row in group])
        scale(axis, "y", [row["images_per_s"] for row in group])
        if several:
            _label_batches(axis, best, memory)
    legend(figure, rows, lines=False)
    return figure


def frontier(rows: list[Record]) -> list[Record]:
    """The rows that no other row beats in both memory and throughput, by growing memory."""
    kept: list[Record] = []
    fastest = -inf
    for row in sorted(rows, key=lambda row: (row["peak_allocated_bytes"], -row["images_per_s"])):
        if row["images_per_s"] > fastest:
            kept.append(row)
            fastest = row["images_per_s"]
    return kept


def _frontier_line(axis: Axes, best: list[Record], memory: Quantity) -> None:
    across = [row[memory.column] * memory.scale for row in best]
    up = [row["images_per_s"] for row in best]
    # a step: between two points of the frontier only the lesser throughput is known to fit
    axis.plot(across, up, drawstyle="steps-post", color=FRONTIER, linewidth=1.2, zorder=1)


def _label_batches(axis: Axes, best: list[Record], memory: Quantity) -> None:
    for row in best:
        point = (row[memory.column] * memory.scale, row["images_per_s"])
        label = str(row["batch_size"])
        axis.annotate(label, point, xytext=(-4, 5), textcoords="offset points", fontsize=7, ha="right")


def _series_name(row: Record) -> str:
    return f"{row['path']}, {row['precision']}"


PICTURES: tuple[Picture, ...] = (
    Picture(name="throughput", title="Throughput", column="images_per_s", draw=_throughput),
    Picture(name="memory", title="Peak memory", column="peak_allocated_bytes", draw=_memory),
    Picture(name="pareto", title="Throughput against peak memory", column="peak_allocated_bytes", draw=_pareto),
)
