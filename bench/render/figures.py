"""The style, facets, scales and encoding that all pictures share."""

from io import BytesIO
from math import ceil
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Petroff, Accessible Color Sequences for Data Visualization (2021), told apart with every common colour blindness;
# its grey comes first, for the baseline.
PALETTE = (
    ("#717581", "#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#92dadd", "#94a4a2")
)  # fmt: skip
FileFormat = Literal["svg", "png"]
FORMATS: tuple[FileFormat, ...] = ("svg", "png")

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


def scale(axes: Axes, letter: Literal["x", "y"], values: list[float]) -> None:
    """Scale an axis from zero, or logarithmically where the values span too much for that. Ticks are plain numbers."""
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


def encode(figure: Figure, file_format: FileFormat) -> bytes:
    """The figure as a file: the same figure gives the same bytes."""
    buffer = BytesIO()
    metadata: dict[str, Any] = {"Date": None} if file_format == "svg" else {"Software": None}
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=file_format, dpi=144, metadata=metadata)
    return buffer.getvalue()
