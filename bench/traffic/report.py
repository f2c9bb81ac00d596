"""The results of `resbench traffic`: rows for scripts, tables for the terminal, and the page. Imports no torch."""

from collections.abc import Iterator
from pathlib import Path

from bench.render.files import write_file
from bench.render.records import MODE_WORDS, Record
from bench.render.tables import texts
from bench.render.templates import templates
from bench.render.text import MISSING, code, prose, rate, ratio, significant
from bench.traffic.machines import MACHINES
from bench.traffic.schemes import DECLARED, scheme_of
from bench.traffic.types import Counted, Operation, Traffic
from resnet.paths import PATHS, PATHS_BY_NAME

MEGA, GIGA = 1e6, 1e9
LATER = ("GFLOP/image", "GB/step")  # where a terminal has no room these columns of totals go, the last first
ALL = ""  # the part of a row that is about the whole network


def records(counted: Counted, *, operations: bool) -> list[Record]:
    """A row for every scheme, for every part of the network, and, if asked for, for every operation; raw values.

    `seen_bytes`, in the row of a whole scheme, are those of the GPU's counters; None where there are none.
    """
    return [
        {"scheme": traffic.scheme, **row}
        for traffic in counted.traffic
        for row in (
            _row(counted, traffic, part=ALL) | {"seen_bytes": _seen(counted).get(traffic.scheme)},
            *(_row(counted, part, part=name) for name, part in traffic.parts().items()),
            *(_operation(counted, operation) for operation in (traffic.operations if operations else ())),
        )
    ]


def _row(counted: Counted, work: Traffic | Operation, *, part: str) -> Record:
    batch, floor_s = counted.request.batch_size, work.floor_s(counted.ceilings, counted.request.precision)
    return {
        "part": part,
        "bytes": work.bytes,
        "bytes_per_image": work.bytes / batch,
        "flops": work.flops,
        "flops_per_image": work.flops / batch,
        "floor_s": floor_s,
    }


def _operation(counted: Counted, operation: Operation) -> Record:
    row = _row(counted, operation, part=operation.part)
    return row | {"direction": operation.direction, "operation": operation.name, "shape": list(operation.shape)}


def _seen(counted: Counted) -> dict[str, int]:
    return {seen.scheme: seen.bytes for seen in counted.seen}


def totals(counted: Counted) -> list[Record]:
    """A line for each scheme, the most bytes first; with the counters' bytes beside the counted ones, if any."""
    least = counted.traffic[-1].bytes
    return [
        {
            "scheme": row["scheme"],
            "MB/image": significant(row["bytes_per_image"] / MEGA),
            **(_seen_columns(counted, row) if counted.seen else {}),
            "over the least": ratio(row["bytes"] / least),
            "GFLOP/image": significant(row["flops_per_image"] / GIGA),
            "GB/step": significant(row["bytes"] / GIGA),
            "floor ms/step": significant(row["floor_s"] * 1e3),
            "img/s at most": f"{counted.request.batch_size / row['floor_s']:,.0f}",
        }
        for row in records(counted, operations=False)
        if row["part"] == ALL
    ]


def _seen_columns(counted: Counted, row: Record) -> Record:
    seen = row["seen_bytes"]
    return {
        "counters MB/image": MISSING if seen is None else significant(seen / counted.request.batch_size / MEGA),
        "over counted": MISSING if seen is None else ratio(seen / row["bytes"]),
    }


def by_part(counted: Counted) -> list[Record]:
    """MB an image of each part of the network: a line for each, a column for each scheme."""
    by_scheme = {traffic.scheme: traffic.parts() for traffic in counted.traffic}
    names = dict.fromkeys(part for parts in by_scheme.values() for part in parts)
    batch = counted.request.batch_size
    return [
        {"part": part} | {scheme: significant(parts[part].bytes / batch / MEGA) for scheme, parts in by_scheme.items()}
        for part in names
    ]


def by_operation(counted: Counted) -> Iterator[tuple[str, list[Record]]]:
    """Each scheme with the lines of its operations, in the order in which they run."""
    for traffic in counted.traffic:
        yield traffic.scheme, [_operation_line(counted, operation) for operation in traffic.operations]


def _operation_line(counted: Counted, operation: Operation) -> Record:
    row, ceilings = _operation(counted, operation), counted.ceilings
    bound_by_bytes = operation.bytes / ceilings.copy_bytes_per_s >= row["floor_s"]
    return {
        "part": operation.part,
        "direction": operation.direction,
        "operation": operation.name,
        "tensor": "x".join(map(str, operation.shape)),
        "MB/image": significant(row["bytes_per_image"] / MEGA),
        "GFLOP/image": significant(row["flops_per_image"] / GIGA) if operation.flops else "",
        "floor us/step": significant(row["floor_s"] * 1e6),
        "bound by": "bytes" if bound_by_bytes else "FLOPs",
    }


def rates(counted: Counted) -> str:
    """The rates that floors are computed from, in words."""
    ceilings, precision = counted.ceilings, counted.request.precision
    peaks = (
        f"{rate(ceilings.copy_bytes_per_s, 'B/s')} and "
        f"{rate(ceilings.matmul_flops_per_s[precision], 'FLOP/s')} in {precision}"
    )
    machine = MACHINES.get(counted.device)
    if machine is None:
        return f"{counted.device}, measured here: {peaks}"
    return f"{counted.device}, {peaks} ({machine.source}: peaks, which nothing reaches)"


def write_page(counted: Counted, file: Path, command: str) -> Path:
    """Write the page of a count, and return it.

    Raises:
        ValueError: it cannot be written.
    """
    request = counted.request
    text = templates.get_template("traffic/traffic.md.j2").render(
        command=command,
        request=request,
        mode=MODE_WORDS[request.mode],
        rates=rates(counted),
        counted=counted,
        schemes=texts([_described(traffic, counted) for traffic in counted.traffic], left=4),
        totals=texts(totals(counted)),
        parts=texts(by_part(counted)),
        machines=texts([_machine(name) for name in MACHINES]),
    )
    return write_file(file, text.encode())


def _described(traffic: Traffic, counted: Counted) -> Record:
    name, mode = traffic.scheme, counted.request.mode
    declared = DECLARED.get(name)
    same = [path.name for path in PATHS if mode in path.modes and scheme_of(path.name, mode) == name != path.name]
    return {
        "scheme": code(name),
        "what it is": prose(declared.summary if declared else PATHS_BY_NAME[name].summary),
        "paths that move the same": ", ".join(map(code, same)) or MISSING,
        "counted by": f"formula: {prose(declared.reason)}" if declared else "running it without data",
    }


def _machine(name: str) -> Record:
    machine = MACHINES[name]
    flops = machine.ceilings.matmul_flops_per_s
    return {
        "device": code(name),
        "memory": rate(machine.ceilings.copy_bytes_per_s, "B/s"),
        **{precision: rate(flops[precision], "FLOP/s") for precision in ("bf16", "tf32", "fp32")},
        "source": machine.source,
    }
