"""The look of paths and precisions in pictures of a run: colours, markers, lines and the legend."""

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from bench.render.figures import FRONTIER, PALETTE
from bench.render.records import Record
from bench.report.order import PATH_ORDER, PRECISION_ORDER

MARKERS: dict[str, Any] = {"fp32": "o", "tf32": "s", "bf16": "^", "fp16": "D"}
LINES: dict[str, Any] = {"fp32": "-", "tf32": "-.", "bf16": "--", "fp16": ":"}


def legend(figure: Figure, rows: list[Record], *, lines: bool) -> None:
    """Draw the legend below the facets: paths by colour, several precisions by marker, and the frontier."""
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


def style(row: Record) -> dict[str, Any]:
    return {"color": colour(row["path"]), "marker": MARKERS.get(row["precision"], "o")}


def colour(path: str) -> str:
    return PALETTE[_order(PATH_ORDER)(path)[0] % len(PALETTE)]


def _order(names: tuple[str, ...]) -> Callable[[str], tuple[int, str]]:
    return lambda name: (names.index(name), "") if name in names else (len(names), name)
