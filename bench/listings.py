"""What the commands list, as rows of plain data: the same rows become a terminal table or JSON. Imports no torch."""

from dataclasses import asdict
from itertools import groupby

from rich import box
from rich.table import Table
from rich.text import Text

from bench.progress import STYLES
from bench.rows import MEASURED_PHASES
from bench.sweep import expand, load_preset, preset_names
from bench.types import Run
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
    """The parity of every case: its worst tensor beside eager's own error, and the first layer that diverges."""
    blank = {"tensors": None, "worst tensor": "", "error": None, "eager": None, "allowed": None, "first layer": ""}
    return [
        {
            "case": result.case.key,
            "verdict": result.status.value,
            **(
                {
                    "tensors": result.parity.tensors,
                    "worst tensor": result.parity.worst.tensor,
                    "error": result.parity.worst.error,
                    "eager": result.parity.worst.eager_error,
                    "allowed": result.parity.worst.tolerance,
                    "first layer": result.parity.first_layer,
                }
                if result.parity
                else blank
            ),
            "reason": result.reason,
        }
        for result in run.results
    ]


def capabilities(cells: list[dict[str, str]]) -> tuple[Rows, list[str]]:
    """What `bench.doctor.examine` found about one device, and the reasons that its rows refer to by number."""
    reasons = list(dict.fromkeys(cell["reason"] for cell in cells if cell["reason"]))
    rows: Rows = [
        {"path": path, "mode": mode}
        | {
            cell["precision"]: f"no ({reasons.index(cell['reason']) + 1})" if cell["reason"] else "yes"
            for cell in group
        }
        for (path, mode), group in groupby(cells, key=lambda cell: (cell["path"], cell["mode"]))
    ]
    return rows, [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]


def overhead(run: Run) -> str:
    """One line: the wall time of the run over the time inside its measured regions (warm-up and samples)."""
    wall_s = sum(session.wall_s for session in run.sessions)
    measured_s = sum(
        seconds for result in run.results for phase, seconds in result.phases_s.items() if phase in MEASURED_PHASES
    )
    ratio = f": {wall_s / measured_s:.2f} times as long" if measured_s else ""
    return f"harness overhead: {wall_s:.1f} s of wall time for {measured_s:.1f} s of warm-up and samples{ratio}"


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
