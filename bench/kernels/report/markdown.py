"""The report of the kernel bench: results.csv, results.json, report.md and pictures. Imports no torch."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from bench.kernels.report import roofline
from bench.kernels.report.roofline import SERIES
from bench.kernels.report.rows import CONTENDERS, frame, records, shape_name, whole
from bench.kernels.report.totals import JUDGED_STEP, NORMS, RATIO_TARGETS, Total, judged, target, totals
from bench.kernels.types import Contender, KernelRun, Survey
from bench.render import csv, figures
from bench.render.facts import fact_table
from bench.render.files import replace_file
from bench.render.records import Record, grouped
from bench.render.tables import Column, TitledTable, table
from bench.render.templates import templates
from bench.render.text import (
    MISSING,
    code,
    count,
    integer,
    listing,
    percent,
    prose,
    rate,
    ratio,
    scientific,
    significant,
    size,
)
from bench.workers.errors import explained

MODES = {"train": "training", "eval": "evaluation"}
LIBRARY = "cublas"  # the name of a launch that is a library's, see `kernels.products.cublas`


def write(directory: Path, run: KernelRun) -> list[Path]:
    """Write the files of a run, and return them.

    Raises:
        ValueError: the directory cannot be written to.
    """
    rows = records(run)
    pictures = roofline.figures(rows, run.survey.ceilings.copy_bytes_per_s)
    files = {
        "report.md": render(run, rows, tuple(pictures)).encode(),
        "results.csv": csv.render(frame(rows)).encode(),
        "results.json": msgspec.json.encode(run) + b"\n",
        **{
            f"plots/{name}.{file_format}": figures.encode(figure, file_format)
            for name, figure in pictures.items()
            for file_format in figures.FORMATS
        },
    }
    with explained(f"cannot write the report to {directory}", "make it writable"):
        return [replace_file(directory / name, data) for name, data in files.items()]


def render(run: KernelRun, rows: list[Record], pictures: Sequence[str]) -> str:
    """report.md of the rows of a run."""
    where = run.survey
    timed = [row for row in rows if row["copy_ms"] is not None]
    launched = judged(rows, where.cache_bytes) if where.device == "cuda" else []
    text = templates.get_template("kernels/report/kernels.md.j2").render(
        run=run,
        where=where,
        copy_rate=rate(where.ceilings.copy_bytes_per_s, "B/s"),
        product_rates=_product_rates(where),
        cache=size(where.cache_bytes),
        outcome=outcome(run),
        scope=scope(run),
        targets=target_sentences(run, rows),
        totals=table([_total_record(run, total) for total in totals(rows, run.survey.request.models)], TOTALS),
        pictures=pictures,
        calls=_parts(whole(timed), _call_columns(run)),
        missed=table([row for row in launched if row["fused_roofline_percent"] < target(row)], _launch_columns(run)),
        judged=len(launched),
        launches=_parts([row for row in timed if row["launch"]], _launch_columns(run)),
        by_library=[
            f"{code(row['form'])} at {shape_name(row)}, {row['direction']}" for row in timed if row["launch"] == LIBRARY
        ],
        traffic=table([row for row in whole(rows) if row["bytes"]], TRAFFIC),
        parity=table(_once([row for row in rows if row["parity"]]), PARITY),
        failures=table([row for row in rows if row["status"] in ("crashed", "parity-failed")], FAILURES),
        pending=len(run.pending),
        facts=fact_table(where.environment, first=True),
        other_facts=fact_table(where.environment, first=False),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"  # sections left out leave their blank lines


def _product_rates(where: Survey) -> str:
    """E.g. ` (bf16 700 TFLOP/s)`."""
    rates = [f"{name} {rate(value, 'FLOP/s')}" for name, value in where.ceilings.matmul_flops_per_s.items()]
    return f" ({listing(rates)})" if rates else ""


def scope(run: KernelRun) -> str:
    """The ops that were asked for, in a sentence."""
    request = run.survey.request
    size = "their own size" if request.image_size is None else f"{request.image_size} px"
    models = [f"{listing(request.models)} at {size}"] if request.models else []
    asked = [f"shapes asked for ({len(request.shapes)})"] if request.shapes else []
    batches = listing(sorted({f"{op.shape[0]:,}" for op in run.survey.ops}))
    where = listing([*models, *asked])
    what = "BatchNorms and bottlenecks" if any(op.block for op in run.survey.ops) else "BatchNorms"
    return f"{what} of {where}, batch {batches}, in {listing(request.dtypes)}, {MODES[request.mode]}."


def outcome(run: KernelRun) -> str:
    """The outcomes of the ops, in sentences."""
    wrong = sum(result.wrong for result in run.outcomes)
    failed = sum(result.failed for result in run.outcomes)
    checked = sum(result.check is not None for result in run.outcomes)
    parts = [f"{count(len(run.survey.ops), 'op')} (a form at a shape and dtype), each forward and backward."]
    if wrong:
        parts.append(f"**Parity failed in {count(wrong, 'op')}**: what they compute is wrong, so they have no speed.")
    elif checked:
        parts.append(f"Parity passed in {f'all {checked:,}' if checked == len(run.survey.ops) else f'{checked:,}'}.")
    if failed:
        parts.append(f"Failed at least in part: {count(failed, 'op')}.")
    if run.pending:
        parts.append(f"Not run ({run.interrupted}): {count(len(run.pending), 'op')}.")
    return " ".join(parts)


def target_sentences(run: KernelRun, rows: list[Record]) -> list[str]:
    """The targets that figures are held against on a GPU: one sentence each."""
    if run.survey.device != "cuda":
        return []
    launched = judged(rows, run.survey.cache_bytes)
    reached = sum(row["fused_roofline_percent"] >= target(row) for row in launched)
    sentences = [
        f"{reached} of {len(launched)} launches on tensors larger than the cache reach their share of their roofline."
    ]
    request = run.survey.request
    for total in totals(rows, request.models):
        step = (total.model, total.dtype, request.mode)
        judged_step = step == JUDGED_STEP and (total.contender, total.work) == ("fused", NORMS)
        for name, limit in RATIO_TARGETS.items() if judged_step else ():
            if interval := total.over.get(name):
                verdict = "is met" if interval.median <= limit else f"is missed by {interval.median / limit - 1:.0%}"
                sentences.append(
                    f"{total.model} in {total.dtype}: {_interval(total, name)} the time of {SERIES[name].label}; the "
                    f"target of at most {limit:g}x {verdict}."
                )
    return sentences


def _total_record(run: KernelRun, total: Total) -> Record:
    """A total as the row of a table."""
    untimed = "not timed" if total.untimed(run.survey.why_untimed) else ""
    return {
        "model": total.model,
        "dtype": total.dtype,
        "work": total.work,
        "contender": SERIES[total.contender].label,
        "layers": total.layers,
        **{name: untimed or significant(getattr(total, name)) for name in ("forward_ms", "backward_ms", "ms")},
        "timed": total.timed,
        **{f"over_{name}": _interval(total, name) for name in ("eager", "compile")},
    }


def _interval(total: Total, name: Contender) -> str:
    interval = total.over.get(name)
    return MISSING if interval is None else ratio(interval.median, interval.low, interval.high)


def _parts(rows: list[Record], columns: tuple[Column, ...]) -> list[TitledTable]:
    """A table for each dtype and direction."""
    cells = grouped(rows, lambda row: (row["dtype"], row["direction"]))
    return [
        TitledTable(title=f"{dtype}, {direction}", table=table(cell, columns)) for (dtype, direction), cell in cells
    ]


def _once(rows: list[Record]) -> list[Record]:
    """One row an op."""
    return [cell[0] for _, cell in grouped(rows, lambda row: (row["form"], shape_name(row), row["dtype"]))]


def _value(name: str, show: Callable[[float | None], str]) -> Callable[[Record], str]:
    return lambda row: show(row[name])


def _time(run: KernelRun, name: Contender) -> Column:
    """Times in µs on a GPU, in ms on a CPU; `not timed` where a machine cannot time the contender."""
    unit, factor = ("µs", 1e3) if run.survey.device == "cuda" else ("ms", 1.0)
    untimed = bool(run.survey.why_untimed) and name == "fused"

    def show(row: Record) -> str:
        value = row[f"{name}_ms"]
        return "not timed" if untimed else significant(None if value is None else value * factor)

    return Column(f"{name} {unit}", show)


def _ratio(name: str) -> Column:
    over, under = name.split("_over_")
    return Column(f"{over} / {under}", lambda row: ratio(row[name], row[f"{name}_low"], row[f"{name}_high"]))


def _copy_share(name: Contender) -> Column:
    return Column(f"{name}: of copy rate", _value(f"{name}_copy_percent", percent))


def _call_columns(run: KernelRun) -> tuple[Column, ...]:
    networks = tuple(
        Column(f"in {model}", lambda row, model=model: integer(row[f"{model}_layers"] or None))  # type: ignore[misc]
        for model in run.survey.request.models
    )
    times = tuple(_time(run, name) for name in CONTENDERS)
    rates = tuple(_copy_share(name) for name in CONTENDERS if name != "copy")
    return (FORM, SHAPE, *networks, *times, *rates, *map(_ratio, RATIO_COLUMNS))


def _launch_columns(run: KernelRun) -> tuple[Column, ...]:
    return (
        FORM,
        SHAPE,
        Column("launch", lambda row: f"{row['direction']}: {row['launch']}", "left"),
        Column("moved", _value("bytes", size)),
        Column("computed", lambda row: rate(row["flops"], "FLOP")),
        _time(run, "fused"),
        _time(run, "copy"),
        Column("fused: of roofline", _value("fused_roofline_percent", percent)),
        Column("target", lambda row: percent(target(row))),
    )


RATIO_COLUMNS = ("fused_over_eager", "fused_over_compile", "compile_over_eager")
FORM = Column("form", lambda row: code(row["form"]), "left")
SHAPE = Column("x", shape_name)
DTYPE = Column("dtype", lambda row: str(row["dtype"]), "left")

TOTALS = (
    Column("network", lambda row: str(row["model"]), "left"),
    DTYPE,
    Column("work", lambda row: str(row["work"]), "left"),
    Column("by", lambda row: str(row["contender"]), "left"),
    Column("forward ms", lambda row: str(row["forward_ms"])),
    Column("backward ms", lambda row: str(row["backward_ms"])),
    Column("both ms", lambda row: str(row["ms"])),
    Column("layers timed", lambda row: f"{row['timed']} of {row['layers']}"),
    Column("time over eager", lambda row: str(row["over_eager"])),
    Column("time over torch.compile", lambda row: str(row["over_compile"])),
)

TRAFFIC = (
    FORM,
    SHAPE,
    DTYPE,
    Column("direction", lambda row: str(row["direction"]), "left"),
    Column("moved", _value("bytes", size)),
    Column("floor", _value("floor_bytes", size)),
    Column("moved / floor", lambda row: ratio(row["floor_bytes"] and row["bytes"] / row["floor_bytes"])),
)

PARITY = (
    FORM,
    SHAPE,
    DTYPE,
    Column("parity", lambda row: str(row["parity"]), "left"),
    Column("worst tensor", lambda row: code(row["parity_tensor"]), "left"),
    Column("error", _value("parity_error", scientific)),
    Column("eager's error", _value("parity_eager_error", scientific)),
    Column("tolerance", _value("parity_tolerance", scientific)),
    Column("checked at batch", _value("parity_batch_size", integer)),
)

FAILURES = (
    FORM,
    SHAPE,
    DTYPE,
    Column("call", lambda row: f"{row['direction']} {row['launch']}".strip(), "left"),
    Column("status", lambda row: str(row["status"]), "left"),
    Column("reason", lambda row: prose(row["reason"]), "left"),
)
