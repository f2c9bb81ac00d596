"""What the commands list, as rows of plain data: the same rows become a terminal table or JSON. Imports no torch."""

from collections import Counter
from dataclasses import asdict
from itertools import groupby

from rich import box
from rich.table import Table
from rich.text import Text

from bench.options import STYLES
from bench.rows import wall_and_measured_s
from bench.sweep import expand, load_preset, preset_names
from bench.types import Result, Run, Status
from resnet.depths import DEPTHS
from resnet.paths import PATHS

Rows = list[dict[str, object]]


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


def verdicts(run: Run) -> Rows:
    """The parity of every case that can run here: its worst tensor beside eager's own error, and where it diverges."""
    return [_verdict(result) for result in run.results if result.status is not Status.UNSUPPORTED]


def _verdict(result: Result) -> dict[str, object]:
    case, parity = result.case, result.parity
    return {
        "model": case.model,
        "mode": case.mode,
        "precision": case.precision,
        "path": case.path,
        "verdict": result.status.value,
        "tensors": parity.tensors if parity else None,
        "worst tensor": parity.worst.tensor if parity else "",
        "error": parity.worst.error if parity else None,
        "eager": parity.worst.eager_error if parity else None,
        "allowed": parity.worst.tolerance if parity else None,
        "first layer": parity.first_layer if parity else "",
        "reason": result.reason,
    }


def unsupported(run: Run) -> list[str]:
    """One line a reason why cases cannot run here, with their number."""
    reasons = Counter(result.reason for result in run.results if result.status is Status.UNSUPPORTED)
    return [f"not run here, {number} of {len(run.results)} cases: {reason}" for reason, number in reasons.items()]


def capabilities(cells: list[dict[str, str]]) -> tuple[Rows, list[str]]:
    """What `bench.doctor.examine` found about one device, and the reasons that its rows refer to by number."""
    reasons = list(dict.fromkeys(reason for cell in cells if (reason := cell["reason"] or cell["untimed"])))
    rows: Rows = [
        {"path": path, "mode": mode} | {cell["precision"]: _capability(cell, reasons) for cell in group}
        for (path, mode), group in groupby(cells, key=lambda cell: (cell["path"], cell["mode"]))
    ]
    return rows, [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]


def _capability(cell: dict[str, str], reasons: list[str]) -> str:
    for name, answer in (("reason", "no"), ("untimed", "parity only")):
        if cell[name]:
            return f"{answer} ({reasons.index(cell[name]) + 1})"
    return "yes"


def overhead(run: Run) -> str:
    """One line: the wall time of the run over the time inside its measured regions (`MEASURED_PHASES`)."""
    wall_s, measured_s = wall_and_measured_s(run)
    ratio = f": {wall_s / measured_s:.2f} times as long" if measured_s else ""
    return f"harness overhead: {wall_s:.1f} s of wall time for {measured_s:.1f} s of warm-up, samples and turns{ratio}"


def table(rows: Rows, title: str = "") -> Table:
    """Rows of the same keys as a terminal table; columns without any value are left out."""
    names = [name for name in rows[0] if any(_text(row[name]) for row in rows)] if rows else []
    drawn = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in names:
        numeric = any(isinstance(row[name], int | float) for row in rows)
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(_text(row[name]), _style(name, row[name])) for name in names))
    return drawn


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
