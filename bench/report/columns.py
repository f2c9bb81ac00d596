"""The tables of report.md: each a tuple of columns over the rows that it is about."""

from collections.abc import Callable

from bench.record.rows import BASELINE
from bench.render.records import Record, grouped
from bench.render.tables import Column, TitledTable, table
from bench.render.text import MISSING, code, integer, interval, percent, prose, ratio, scientific, significant, size
from bench.render.text import steps as steps_text
from bench.report.order import setup, setup_name, varying
from resnet.paths import PATHS_BY_NAME


def parts(rows: list[Record], columns: tuple[Column, ...]) -> list[TitledTable]:
    """One table a setup, e.g. `resnet50 training`."""
    shown = varying(rows)
    tables = [(group, table(group, columns)) for _, group in grouped(rows, setup)]
    return [TitledTable(title=setup_name(group[0], shown), table=text) for group, text in tables if text]


def _value(name: str, show: Callable[[float | None], str]) -> Callable[[Record], str]:
    return lambda row: show(row[name])


def _marked(row: Record) -> str:
    return MISSING if row["status"] == "valid" else str(row["status"])


def _speedup(row: Record, name: str = "speedup_vs_eager") -> str:
    return ratio(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _share(row: Record) -> str:
    return percent(None if row["mfu"] is None else 100 * row["mfu"])


MODEL = Column("model", lambda row: str(row["model"]), "left")
MODE = Column("mode", lambda row: str(row["mode"]), "left")
BATCH = Column("batch", _value("batch_size", integer))
PRECISION = Column("precision", lambda row: str(row["precision"]), "left")
PATH = Column("path", lambda row: code(row["path"]), "left")
CASE = Column("case", lambda row: code(row["case"]), "left")
MARK = Column("mark", _marked, "left")
SPEED = Column("img/s", lambda row: interval(*(row[f"images_per_s{end}"] for end in ("", "_low", "_high"))))
SPEEDUP = Column("vs eager", _speedup)
SPEEDUP_FP32 = Column("vs eager fp32", lambda row: _speedup(row, "speedup_vs_eager_fp32"))
PEAK = Column("peak memory", _value("peak_allocated_bytes", size))
PEAK_RATIO = Column("peak vs eager", _value("peak_vs_eager", ratio))
PARITY = Column("parity", lambda row: row["parity"] or "not checked", "left")
MEDIAN = Column("ms/step", _value("step_ms_p50", significant))

HEADLINE = (MODEL, MODE, PRECISION, BATCH, PATH, SPEED, SPEEDUP, SPEEDUP_FP32, PEAK, PEAK_RATIO, PARITY, MARK)

THROUGHPUT = (
    BATCH, PRECISION, PATH, SPEED, SPEEDUP, SPEEDUP_FP32, MEDIAN,
    Column("of floor", _value("floor_percent", percent)),
    Column("MFU", _share),
    MARK,
)  # fmt: skip

MEMORY = (
    BATCH, PRECISION, PATH, PEAK, Column("vs eager", _value("peak_vs_eager", ratio)),
    Column("reserved", _value("peak_reserved_bytes", size)),
    Column("process", _value("process_bytes", size)),
    Column("parameters", _value("parameter_bytes", size)),
    Column("gradients", _value("gradient_bytes", size)),
    Column("optimizer", _value("optimizer_bytes", size)),
    Column("activations", _value("activation_bytes", size)),
    Column("graph pools", _value("graph_pool_bytes", size)),
    Column("workspace", _value("workspace_bytes", size)),
)  # fmt: skip

MAX_BATCH = (MODEL, MODE, PRECISION, PATH, Column("largest batch", _value("max_batch_size", integer)))

LATENCY = (
    BATCH, PRECISION, PATH,
    *(Column(f"p{q} ms", _value(f"step_ms_p{q}", significant)) for q in (10, 50, 90, 99)),
    Column("wall ms", _value("wall_step_ms", significant)),
    Column("samples", _value("samples", integer)),
    MARK,
)  # fmt: skip

COMPILE = (
    BATCH, PRECISION, PATH,
    Column("first call s", _value("first_call_s", significant)),
    Column("pays off after steps", _value("compile_break_even_steps", steps_text)),
    MEDIAN,
    Column("graph breaks", _value("graph_breaks", lambda number: integer(number) if number else MISSING)),
    Column("recompilations", _value("recompilations", lambda number: integer(number) if number else MISSING)),
)  # fmt: skip

POWER = (
    BATCH, PRECISION, PATH,
    Column("J/image", _value("joules_per_image", significant)),
    Column("power W", _value("power_w", integer)),
    Column("SM MHz", _value("sm_clock_mhz", integer)),
    Column("memory MHz", _value("memory_clock_mhz", integer)),
    Column("°C", _value("temperature_c", integer)),
    Column("throttled by", lambda row: row["throttle_reasons"] or MISSING, "left"),
)  # fmt: skip

PARITIES = (
    BATCH, PRECISION, PATH, PARITY,
    Column("worst tensor", lambda row: code(row["parity_worst_tensor"]), "left"),
    Column("error", _value("parity_error", scientific)),
    Column("eager's error", _value("parity_eager_error", scientific)),
    Column("tolerance", _value("parity_tolerance", scientific)),
    Column("tensors", _value("parity_tensors", integer)),
    Column("failed", lambda row: integer(row["parity_failed_tensors"] or None)),
    Column("first layer", lambda row: code(row["parity_first_layer"]), "left"),
    Column("checked at", lambda row: f"batch {row['parity_batch_size']}" if _elsewhere(row) else MISSING, "left"),
)  # fmt: skip

FAILURES = (CASE, Column("reason", lambda row: prose(row["reason"]), "left"))


def _elsewhere(row: Record) -> bool:
    """Whether parity was checked at another batch than the row's."""
    return row["parity_batch_size"] not in (None, row["batch_size"])


def compiled(rows: list[Record]) -> list[Record]:
    """The rows whose path compiles or captures, each beside the eager row it is compared with."""
    cells = grouped(rows, lambda row: (*setup(row), row["precision"], row["batch_size"]))
    kept = []
    for _, cell in cells:
        paying = [row for row in cell if _pays(row)]
        kept += [row for row in cell if row["path"] == BASELINE] + paying if paying else []
    return kept


def _pays(row: Record) -> bool:
    path = PATHS_BY_NAME.get(row["path"])
    return path is not None and bool(path.compile_mode or path.cuda_graph)
