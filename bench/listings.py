"""What the commands list, as rows of plain data: the same rows become a terminal table or JSON. Imports no torch."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from bench.sweep import cell
from bench.terminal.options import STYLES
from bench.record.rows import wall_and_measured_s
from bench.terminal.sheet import EMPTY, Align, Axis, Column, Form, Sheet
from bench.sweep.cases import expand, load_preset, preset_names
from bench.types import Result, Run, Status
from resnet.models.table import DEPTHS
from resnet.paths import PATHS

# What `bench.machine.doctor.examine` may have found to be in the way, and what it leaves.
ANSWERS = {"reason": "no", "untimed": "parity only", "emulated": "emulated"}

Rows = list[dict[str, object]]

PROSE = frozenset({"what it is", "needs", "value", "reason"})  # columns that may be broken between words
_FIGURE = re.compile(r"[\d.,]+( %|x( ±.*| \[.*\])?)?|inf|never")


def paths() -> Rows:
    """The table of paths: what each is, which modes it has and what it needs."""
    return [
        {"path": path.name, "what it is": path.summary, "modes": list(path.modes), "needs": list(path.needs)}
        for path in PATHS
    ]


def presets() -> Rows:
    """The presets that come with resbench, with the number of their cases."""
    loaded = map(load_preset, preset_names())
    return [{"preset": preset.name, "cases": len(expand(preset)), "what it is": preset.summary} for preset in loaded]


def models() -> Rows:
    """The models with their residual block and its repeats in each stage."""
    return [{"model": name, **asdict(depth)} for name, depth in DEPTHS.items()]


def verdicts(run: Run) -> Sheet:
    """The parity of every case that can run here: its worst tensor beside eager's own error, and where it diverges."""
    rows = [_verdict(result) for result in run.results if result.status is not Status.UNSUPPORTED]
    return table(rows, axes=cell.AXES, later=("worst tensor", "first layer", "eager", "tensors"))


def _verdict(result: Result) -> dict[str, object]:
    case, parity = result.case, result.parity
    return {
        **{axis.name: getattr(case, axis.name) for axis in cell.AXES},
        "path": case.path,
        "verdict": result.status.value,
        "tensors": parity.tensors if parity else None,
        "worst tensor": parity.worst.tensor if parity else "",
        "error": parity.worst.error if parity else None,
        "eager": parity.worst.eager_error if parity else None,
        "allowed": parity.worst.tolerance if parity else None,
        "first layer": parity.first_layer if parity else "",
    }


def capabilities(device: str, cells: list[dict[str, str]]) -> tuple[Sheet, list[str]]:
    """What `bench.machine.doctor.examine` found about one device, and the reasons that its rows refer to by number."""
    reasons = list(dict.fromkeys(cell[name] for cell in cells for name in ANSWERS if cell[name]))
    rows: Rows = [
        {"path": path, "mode": mode} | {cell["precision"]: _capability(cell, reasons) for cell in group}
        for (path, mode), group in groupby(cells, key=lambda cell: (cell["path"], cell["mode"]))
    ]
    first = [_column("path", rows, key=True), _column("mode", rows, key=True)]
    precisions = dict.fromkeys(cell["precision"] for cell in cells)
    columns = [Column(name, (Form(0, _shorter(name)), Form(1, _cell(name))), "left") for name in precisions]
    sheet = Sheet(rows=rows, columns=[*first, *columns], title=f"paths on {device}")
    return sheet, [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]


def _shorter(name: str) -> Callable[[Any], str]:
    """`parity only (2)` as `parity (2)`."""
    return lambda row: _text(row[name]).replace(" only", "")


def _capability(cell: dict[str, str], reasons: list[str]) -> str:
    for name, answer in ANSWERS.items():
        if cell[name]:
            return f"{answer} ({reasons.index(cell[name]) + 1})"
    return "yes"


def overhead(run: Run) -> str:
    """One line: the wall time of the run over the time inside its measured regions (`MEASURED_PHASES`)."""
    wall_s, measured_s = wall_and_measured_s(run)
    ratio = f": {wall_s / measured_s:.2f} times as long" if measured_s else ""
    return f"harness overhead: {wall_s:.1f} s of wall time for {measured_s:.1f} s of warm-up, samples and turns{ratio}"


def table(
    rows: Rows,
    title: str = "",
    *,
    axes: Sequence[Axis] = (),
    later: Sequence[str] = (),
    elsewhere: str = "a wider terminal has them",
) -> Sheet:
    """Rows of the same keys as a terminal table; columns without any value are left out.

    Of the columns in `later` the last goes first where the width does not suffice; the others come in several tables
    then, each with the first, which names the row. `elsewhere` says where columns that go are found.
    """
    names = [name for name in rows[0] if name not in {axis.name for axis in axes}] if rows else []
    ranks = {name: rank for rank, name in enumerate(later, 1)}
    columns = [_column(name, rows, rank=ranks.get(name, 0), key=name == names[0]) for name in names]
    return Sheet(rows=rows, columns=columns, axes=axes, title=title, elsewhere=elsewhere)


def _column(name: str, rows: Rows, *, rank: int = 0, key: bool = False) -> Column:
    cells = {_text(row[name]) for row in rows} - EMPTY
    align: Align = "right" if cells and all(map(_FIGURE.fullmatch, cells)) else "left"
    return Column(name, (Form(rank, _cell(name)),), align, _style_of(name), prose=name in PROSE, key=key)


def _cell(name: str) -> Callable[[Any], str]:
    return lambda row: _text(row[name])


def _style_of(name: str) -> Callable[[Any], str]:
    return lambda row: _style(name, row[name])


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:.2g}"
        case list() | tuple():
            return ", ".join(map(str, value))
    return str(value)


def _style(name: str, value: object) -> str:
    return next((style for status, style in STYLES.items() if name == "verdict" and value == status.value), "")
