"""The picture of the kernel bench: how near each op comes to the copy ceiling. Matplotlib's object API, no pyplot."""

from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.kernels.report.rows import CONTENDERS, shape_name, whole
from bench.kernels.types import Contender
from bench.render.figures import FRONTIER, PALETTE, STYLE
from bench.render.records import Record, grouped
from bench.render.text import rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The look of a contender."""

    label: str
    colour: str
    marker: str
    size: float = 5.5
    edge: str = "white"
    edge_width: float = 0.6


# Ours above all others: the last is drawn last.
SERIES: dict[Contender, Series] = {
    "copy": Series(
        label="plain copy of the same bytes", colour=PALETTE[7], marker="_", size=9, edge=PALETTE[7], edge_width=2
    ),
    "eager": Series(label="eager", colour=PALETTE[0], marker="o"),
    "compile": Series(label="torch.compile", colour=PALETTE[2], marker="s"),
    "fused": Series(label="fused", colour=PALETTE[1], marker="D"),
}
DIRECTIONS = ("forward", "backward")
GAP = 1  # places between two forms

Place = tuple[str, str]  # form and shape


def figures(rows: list[Record], copy_bytes_per_s: float) -> dict[str, Figure]:
    """A figure for each dtype that has a time, by name."""
    timed = [row for row in whole(rows) if any(row[f"{name}_ms"] is not None for name in CONTENDERS)]
    with mpl.rc_context(STYLE):
        return {
            f"roofline-{dtype}": _figure(group, copy_bytes_per_s)
            for dtype, group in grouped(timed, lambda r: r["dtype"])
        }


def _figure(rows: list[Record], copy_bytes_per_s: float) -> Figure:
    """Forward above backward; a column for each shape, grouped by form, the largest tensor of a form first."""
    places = _places(rows)
    figure = Figure(figsize=(max(6.5, 1.2 + 0.34 * (max(places.values()) + 1)), 6.6), layout="constrained")
    axes = figure.subplots(len(DIRECTIONS), 1, sharex=True, sharey=True)
    for axis, direction in zip(axes, DIRECTIONS, strict=True):
        axis.axhline(copy_bytes_per_s / 1e9, color=FRONTIER, linewidth=1.2, linestyle="--")
        for name, series in SERIES.items():
            timed = [row for row in rows if row["direction"] == direction and row[f"{name}_ms"] is not None]
            _draw(axis, [(places[_place(row)], row[f"{name}_bytes_per_s"] / 1e9) for row in timed], series)
        axis.set_title(direction, loc="left", fontweight="bold")
        axis.set_ylabel("GB/s")
        axis.grid(visible=False, axis="x")
        axis.set_ylim(bottom=0)
    _name_places(axes[-1], places, rows)
    _legend(figure, rows, copy_bytes_per_s)
    return figure


def _draw(axis: Axes, points: list[tuple[int, float]], series: Series) -> None:
    axis.plot(
        [place for place, _ in points],
        [value for _, value in points],
        linestyle="",
        color=series.colour,
        marker=series.marker,
        markersize=series.size,
        markeredgecolor=series.edge,
        markeredgewidth=series.edge_width,
    )


def _place(row: Record) -> Place:
    return row["form"], shape_name(row)


def _places(rows: list[Record]) -> dict[Place, int]:
    """The place of each op on the axis."""
    places: dict[Place, int] = {}
    following = 0
    for _, group in grouped(rows, lambda row: row["form"]):
        ordered = dict.fromkeys(_place(row) for row in sorted(group, key=lambda row: -row["tensor_bytes"]))
        places |= {place: following + step for step, place in enumerate(ordered)}
        following += len(ordered) + GAP
    return places


def _name_places(axis: Axes, places: dict[Place, int], rows: list[Record]) -> None:
    """Channels and pixels below each column, the form below its group."""
    axis.set_xticks(list(places.values()), [_tick(shape) for _, shape in places])
    axis.tick_params(axis="x", length=0)
    for form in dict.fromkeys(form for form, _ in places):
        at = [place for (name, _), place in places.items() if name == form]
        axis.annotate(
            form,
            ((at[0] + at[-1]) / 2, 0),
            xytext=(0, -32),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="top",
            fontweight="bold",
        )
    batches = ", ".join(str(batch) for batch in sorted({row["n"] for row in rows}))
    axis.set_xlabel(f"channels and pixels of x, batch {batches}", labelpad=28)


def _tick(shape: str) -> str:
    _, channels, height, width = shape.split("x")
    return f"{channels}\n{height}²" if height == width else f"{channels}\n{height}x{width}"


def _legend(figure: Figure, rows: list[Record], copy_bytes_per_s: float) -> None:
    shown = [series for name, series in reversed(SERIES.items()) if any(row[f"{name}_ms"] is not None for row in rows)]
    handles = [
        Line2D([], [], linestyle="", color=series.colour, marker=series.marker, markersize=series.size,
               label=series.label, markeredgecolor=series.edge, markeredgewidth=series.edge_width)
        for series in shown
    ]  # fmt: skip
    label = f"ceiling: a large copy, {rate(copy_bytes_per_s, 'B/s')}"
    handles.append(Line2D([], [], color=FRONTIER, linewidth=1.2, linestyle="--", label=label))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
