"""What all pictures share: the style, the colours and marks of the series, facets, scales and the legend."""

from collections.abc import Callable
from math import ceil
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.report.order import PATH_ORDER, PRECISION_ORDER, Record

# Petroff, Accessible Color Sequences for Data Visualization (2021), told apart with every common colour blindness;
# its grey comes first, for the baseline.
PALETTE = (
    ("#717581", "#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#92dadd", "#94a4a2")
)  # fmt: skip
MARKERS: dict[str, Any] = {"fp32": "o", "tf32": "s", "bf16": "^", "fp16": "D"}
LINES: dict[str, Any] = {"fp32": "-", "tf32": "-.", "bf16": "--", "fp16": ":"}
FRONTIER = "#999999"
LOG_SPAN = 20  # a largest value this many times the smallest asks for a logarithmic axis
PLAIN = FuncFormatter(lambda value, _: f"{value:,.12g}")  # 10,000 and 0.2, never 1e4
STYLE: Any = {  # the type of its keys differs between versions of matplotlib
    "svg.hashsalt": "resbench",  # the same picture is the same file
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


def facets(number: int, height: float) -> tuple[Figure, list[Axes]]:
    """Two facets abreast, in reading order."""
    across = min(2, number)
    down = ceil(number / across)
    figure = Figure(figsize=(5.0 * across + 0.5, height * down + 0.5), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    axes = [axis for line in grid for axis in line]
    for axis in axes[number:]:
        axis.remove()
    return figure, axes[:number]


def legend(figure: Figure, rows: list[Record], *, lines: bool) -> None:
    """Below the facets: the paths by colour, the precisions by marker where there are several, and the frontier."""
    paths = sorted({row["path"] for row in rows}, key=_order(PATH_ORDER))
    precisions = sorted({row["precision"] for row in rows}, key=_order(PRECISION_ORDER))
    handles = [Line2D([], [], color=colour(path), linewidth=4, label=path) for path in paths]
    if len(precisions) > 1:
        handles += [_precision_handle(name, lines=lines) for name in precisions]
    if not lines:
        several = len({row["batch_size"] for row in rows}) > 1
        label = "nothing is faster in less memory" + (" (labels: batch size)" if several else "")
        mark: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "markeredgecolor": "black"}
        handles.append(Line2D([], [], color=FRONTIER, linewidth=1.2, label=label, **mark))
    columns = min(len(handles), 4 if figure.get_figwidth() > 6 else 2)  # noqa: PLR2004 - inches
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.6)


def _precision_handle(name: str, *, lines: bool) -> Line2D:
    style: Any = LINES.get(name, "-") if lines else ""
    return Line2D([], [], color="black", marker=MARKERS.get(name, "o"), linestyle=style, markersize=5, label=name)


def batch_ticks(axis: Axes, rows: list[Record]) -> None:
    batches = sorted({row["batch_size"] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.xaxis.set_minor_locator(NullLocator())


def scale(axes: Axes, letter: Literal["x", "y"], values: list[float]) -> None:
    """From zero, or logarithmic where the values span too much for that. Ticks are plain numbers."""
    axis = axes.xaxis if letter == "x" else axes.yaxis
    if _wide(values):
        axes.set(**{f"{letter}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
    else:
        axes.set(**{f"{letter}lim": (0, None)})
    axis.set_major_formatter(PLAIN)


def _wide(values: list[float]) -> bool:
    return min(values) > 0 and max(values) > LOG_SPAN * min(values)


def style(row: Record) -> dict[str, Any]:
    return {"color": colour(row["path"]), "marker": MARKERS.get(row["precision"], "o")}


def colour(path: str) -> str:
    return PALETTE[_order(PATH_ORDER)(path)[0] % len(PALETTE)]


def _order(names: tuple[str, ...]) -> Callable[[str], tuple[int, str]]:
    return lambda name: (names.index(name), "") if name in names else (len(names), name)
