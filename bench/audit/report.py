"""Views of the audit's results: the table of the worst of each form, and CSV. Imports no torch."""

import csv
from collections.abc import Callable, Iterable
from io import StringIO

from bench.audit.types import Row
from bench.terminal import tables


def summary(rows: Iterable[Row]) -> tables.Rows:
    """A line for each architecture, kernel and form: the worst of its compilations."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        for form in row["forms"]:
            groups.setdefault((row["arch"], row["kernel"], form), []).append(row)
    return [
        {"arch": arch, "kernel": kernel, "form": form, "faults": sum(len(row["faults"]) for row in group)}
        | _worst([row for row in group if "registers" in row])
        for (arch, kernel, form), group in groups.items()
    ]


def _worst(compiled: list[Row]) -> dict[str, object]:
    return {name: worst(compiled) if compiled else None for name, worst in _WORST.items()}


def _largest(name: str) -> Callable[[list[Row]], object]:
    return lambda rows: max(row[name] for row in rows)


def _occupancy(rows: list[Row]) -> str:
    least = min(rows, key=lambda row: row["resident_warps"])
    return f"{least['resident_warps']} of {least['of_warps']} warps ({least['limited_by']})"


_WORST: dict[str, Callable[[list[Row]], object]] = {
    "compiled": len,
    "registers": _largest("registers"),
    "spilled B": _largest("spill_bytes"),
    "stack B": _largest("stack_bytes"),
    "shared B": lambda rows: max(row["static_shared_bytes"] + row["dynamic_shared_bytes"] for row in rows),
    "load bits": _largest("load_bits"),
    "store bits": _largest("store_bits"),
    "main bits": lambda rows: min((row["main_bits"] for row in rows if row["wide"]), default=None),
    "occupancy": _occupancy,
}


def csv_of(rows: list[Row]) -> str:
    """Every compilation; lists are joined by spaces."""
    text = StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "; ".join(value) if isinstance(value, list) else value for name, value in row.items()})
    return text.getvalue()
