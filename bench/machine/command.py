"""Tells what this machine can run. Imports no torch."""

from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from bench.machine.types import Cell
from bench.terminal.exits import UNJUDGED
from bench.terminal.options import epilog
from bench.terminal.output import Output
from bench.terminal.sheet import Column, Form, Sheet
from bench.terminal.tables import Rows, cell_of, column, table, text_of
from bench.terminal.wrapped import say
from bench.types import Device
from bench.workers.entry import remote
from bench.workers.parent import call

if TYPE_CHECKING:
    from bench.machine import doctor as worker
else:
    worker = remote("bench.machine.doctor")

# The obstacles that `bench.machine.doctor.examine` reports, and the answer that each leaves.
ANSWERS = {"reason": "no", "untimed": "parity only", "emulated": "emulated"}


def capabilities(device: str, cells: list[Cell]) -> tuple[Sheet, list[str]]:
    """The table of what a device can run, and the reasons that its rows refer to by number."""
    reasons = list(dict.fromkeys(cell[name] for cell in cells for name in ANSWERS if cell[name]))
    rows: Rows = [
        {"path": path, "mode": mode} | {cell["precision"]: _capability(cell, reasons) for cell in group}
        for (path, mode), group in groupby(cells, key=lambda cell: (cell["path"], cell["mode"]))
    ]
    first = [column("path", rows, key=True), column("mode", rows, key=True)]
    precisions = dict.fromkeys(cell["precision"] for cell in cells)
    columns = [Column(name, (Form(0, _shorter(name)), Form(1, cell_of(name))), "left") for name in precisions]
    sheet = Sheet(rows=rows, columns=[*first, *columns], title=f"paths on {device}")
    return sheet, [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]


def _shorter(name: str) -> Callable[[Any], str]:
    """`parity only (2)` as `parity (2)`."""
    return lambda row: text_of(row[name]).replace(" only", "")


def _capability(cell: Cell, reasons: list[str]) -> str:
    for name, answer in ANSWERS.items():
        if cell[name]:
            return f"{answer} ({reasons.index(cell[name]) + 1})"
    return "yes"


@click.command(epilog=epilog("resbench doctor", "resbench doctor --json", exits=UNJUDGED))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array on stdout.")
def doctor(*, as_json: bool) -> None:
    """Show what this machine can run, and why it cannot run the rest."""
    output = Output(as_json=as_json)
    devices = call(worker.examine)
    if as_json:
        output.json(devices)
        return
    console = output.console()
    for device in devices:
        facts: Rows = [{"fact": name, "value": value} for name, value in device.facts.items()]
        console.print(table(facts, title=device.device))
        say(console, f"Measured now: {device.reaches}.")
        paths, reasons = capabilities(device.device, device.cells)
        console.print(paths)
        for reason in reasons:
            say(console, reason, indent=4)


def device_found() -> Device:
    """The device to run on by default: cuda where torch finds it, else cpu."""
    return "cuda" if call(worker.has_cuda) else "cpu"
