"""The METRICS table: every column of results.csv, and how it derives from a result. Imports no torch.

To add a column, add a row: the CSV, the reports and the table in reports/README.md follow.
"""

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from bench.record.rows import Row, rows
from bench.types import Run

Better = Literal["higher", "lower"] | None
ColumnDtype = Literal["string", "Int64", "Float64", "boolean"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One column. Values are raw and in `unit`; only printers round and scale. Positional, to read as a table."""

    name: str
    unit: str
    title: str
    better: Better
    dtype: ColumnDtype  # nullable, so that integers stay integers beside missing values
    description: str
    source: str  # attributes of Row, one after the other; None on the way is a missing value


# fmt: off
METRICS: tuple[Metric, ...] = (
    Metric("case", "", "case", None, "string",
           "Stable key of the case; unique within a run.", "case.key"),
    Metric("model", "", "model", None, "string",
           "Network, by its name in `resbench list models`.", "case.model"),
    Metric("mode", "", "mode", None, "string",
           "`train`: forward, loss, backward and optimizer step; `infer`: forward alone.", "case.mode"),
    Metric("precision", "", "precision", None, "string",
           "`fp32`, `tf32`, or autocast to `bf16` or `fp16` (training in fp16 scales the loss).", "case.precision"),
    Metric("batch_size", "images", "batch size", None, "Int64",
           "Images a step; in a `max-batch` row the largest batch that fits, empty where none did.", "batch_size"),
    Metric("image_size", "px", "image size", None, "Int64",
           "Height of the input; the width is in proportion to the network's own input, the same for a ResNet.",
           "case.image_size"),
    Metric("path", "", "path", None, "string",
           "Way to run the network; `eager` is the baseline.", "case.path"),
    Metric("device", "", "device", None, "string",
           "`cpu` or `cuda`.", "case.device"),
    Metric("world_size", "", "world size", None, "Int64",
           "Processes that share the work.", "case.world_size"),
    Metric("status", "", "status", None, "string",
           "Outcome of the case: see Statuses.", "result.status"),
    Metric("reason", "", "reason", None, "string",
           "Why the status is not `valid`.", "result.reason"),
    Metric("images_per_s", "img/s", "throughput", "higher", "Float64",
           "Batch size over the median step time.", "throughput.median"),
    Metric("images_per_s_low", "img/s", "throughput, low", "higher", "Float64",
           "Lower end of the 95 % interval of `images_per_s`.", "throughput.low"),
    Metric("images_per_s_high", "img/s", "throughput, high", "higher", "Float64",
           "Upper end of the 95 % interval of `images_per_s`.", "throughput.high"),
    Metric("speedup_vs_eager", "x", "speed-up", "higher", "Float64",
           "Eager's step time over this row's, all else equal, precision included: the median over rounds in which the "
           "workers of both take turns. Above 1 is faster; empty where eager has no row or failed beside it "
           "(`speedup_note`).",
           "speedup.median"),
    Metric("step_ms_p10", "ms", "step p10", "lower", "Float64",
           "10th percentile of the step time.", "p10"),
    Metric("step_ms_p50", "ms", "step p50", "lower", "Float64",
           "Median step time: CUDA events around a step, or the host's clock on CPU.", "step.median"),
    Metric("step_ms_p90", "ms", "step p90", "lower", "Float64",
           "90th percentile of the step time.", "p90"),
    Metric("samples", "steps", "samples", None, "Int64",
           "Timed steps; none is trimmed.", "sample_count"),
    Metric("first_call_s", "s", "first call", "lower", "Float64",
           "First step: compilation, autotuning, algorithm search and graph capture, cold; never in the samples. "
           "What the compiler learns once per machine (usable vector instructions, precompiled headers) is left out.",
           "measurement.first_call_s"),
    Metric("compile_break_even_steps", "steps", "break-even", "lower", "Float64",
           "Steps until a first call longer than eager's has paid for itself; 0 where it is not longer, `inf` where "
           "the path is not faster, empty for paths that neither compile nor capture.", "break_even_steps"),
    Metric("peak_allocated_bytes", "B", "peak memory", "lower", "Int64",
           "Peak of a step. CUDA: caching allocator, with the whole private pools of CUDA graphs; CPU: resident set "
           "above the worker's baseline, freed blocks handed back at once.", "memory.peak_allocated_bytes"),
    Metric("peak_reserved_bytes", "B", "peak reserved", "lower", "Int64",
           "CUDA: peak that the caching allocator held from the driver.", "memory.peak_reserved_bytes"),
    Metric("parameter_bytes", "B", "parameters", "lower", "Int64",
           "Parameters and buffers.", "memory.parameter_bytes"),
    Metric("gradient_bytes", "B", "gradients", "lower", "Int64",
           "Gradients of the parameters.", "memory.gradient_bytes"),
    Metric("optimizer_bytes", "B", "optimizer", "lower", "Int64",
           "Optimizer state.", "memory.optimizer_bytes"),
    Metric("activation_bytes", "B", "activations", "lower", "Int64",
           "Activations that autograd keeps for backward.", "memory.activation_bytes"),
    Metric("parity", "", "parity", None, "string",
           "`pass` or `fail` against the fp64 reference; empty where it was not checked.", "parity"),
    Metric("parity_worst_tensor", "", "worst tensor", None, "string",
           "Tensor with the largest error in units of its tolerance, and after @ the step it was read after.",
           "checked.worst.tensor"),
    Metric("parity_error", "", "error", "lower", "Float64",
           "Relative L2 error of that tensor against fp64; `inf` where it holds NaN.",
           "checked.worst.error"),
    Metric("parity_eager_error", "", "eager's error", "lower", "Float64",
           "Eager's own relative L2 error of the same tensor at the same precision.",
           "checked.worst.eager_error"),
    Metric("flops", "FLOP", "FLOPs", None, "Int64",
           "Floating-point operations of one step by the definition of its convolutions, two for a multiply-add, "
           "whichever algorithm computes them.", "cost.flops"),
    Metric("floor_ms", "ms", "floor", None, "Float64",
           "Least step time at this device's measured ceilings: the larger of FLOPs over the matrix-multiply rate and "
           "minimal bytes over the copy rate. Convolutions by Winograd's algorithm multiply less and may go below it.",
           "floor_ms"),
    Metric("floor_percent", "%", "of floor", "higher", "Float64",
           "Floor over the median step time.", "floor_percent"),
    Metric("mfu", "fraction", "MFU", "higher", "Float64",
           "Model FLOPs utilization: FLOPs a second over the measured matrix-multiply rate at this precision.", "mfu"),
    Metric("joules_per_image", "J", "energy per image", "lower", "Float64",
           "Energy of the whole GPU per image; empty where the window was too short for its counter.",
           "joules_per_image"),
    Metric("sm_clock_mhz", "MHz", "SM clock", None, "Float64",
           "Median SM clock while sampling.", "telemetry.sm_clock_mhz"),
    Metric("power_w", "W", "power", None, "Float64",
           "Median board power while sampling.", "telemetry.power_w"),
    Metric("temperature_c", "°C", "temperature", None, "Float64",
           "Median GPU temperature while sampling.", "telemetry.temperature_c"),
    Metric("kind", "", "kind", None, "string",
           "`measure`: checked and timed; `parity`: checked only; `max-batch`: search for the largest batch.",
           "case.kind"),
    Metric("max_batch_size", "images", "largest batch", "higher", "Int64",
           "Largest batch that was found to fit, in `max-batch` rows: exact up to 64, above it less than 1/32 too low.",
           "result.max_batch_size"),
    Metric("speedup_vs_eager_low", "x", "speed-up, low", "higher", "Float64",
           "Lower end of the 95 % interval of `speedup_vs_eager`.", "speedup.low"),
    Metric("speedup_vs_eager_high", "x", "speed-up, high", "higher", "Float64",
           "Upper end of the 95 % interval of `speedup_vs_eager`.", "speedup.high"),
    Metric("speedup_vs_eager_fp32", "x", "speed-up over fp32", "higher", "Float64",
           "Like `speedup_vs_eager`, but over eager at fp32: the gain of the precision is included.",
           "speedup_fp32.median"),
    Metric("speedup_vs_eager_fp32_low", "x", "speed-up over fp32, low", "higher", "Float64",
           "Lower end of the 95 % interval of `speedup_vs_eager_fp32`.", "speedup_fp32.low"),
    Metric("speedup_vs_eager_fp32_high", "x", "speed-up over fp32, high", "higher", "Float64",
           "Upper end of the 95 % interval of `speedup_vs_eager_fp32`.", "speedup_fp32.high"),
    Metric("speedup_note", "", "note", None, "string",
           "Why a speed-up is missing: how eager failed beside this row.", "timed.turns_note"),
    Metric("step_ms_p99", "ms", "step p99", "lower", "Float64",
           "99th percentile of the step time; empty where the samples are too few for it.", "p99"),
    Metric("wall_step_ms", "ms", "wall step", "lower", "Float64",
           "Host wall time a step over the same samples.", "timed.wall_ms"),
    Metric("confidence_percent", "%", "half-width", "lower", "Float64",
           "Half the width of the 95 % interval of the median step time, relative to the median.",
           "confidence_percent"),
    Metric("steady", "", "steady", None, "boolean",
           "Whether warm-up reached a steady state within its budget.", "timed.steady"),
    Metric("converged", "", "converged", None, "boolean",
           "Whether the confidence target was met within the sample budget.", "timed.converged"),
    Metric("recompilations", "", "recompilations", "lower", "Int64",
           "Recompilations by torch.compile during the samples.", "measurement.recompilations"),
    Metric("graph_breaks", "", "graph breaks", "lower", "Int64",
           "Graph breaks of torch.compile during the samples.", "measurement.graph_breaks"),
    Metric("peak_vs_eager", "x", "peak vs eager", "lower", "Float64",
           "Peak memory over eager's, all else equal, precision included; below 1 is less.", "peak_ratio"),
    Metric("process_bytes", "B", "process", "lower", "Int64",
           "CUDA: the driver's figure for the process; CPU: its peak resident set.", "memory.process_bytes"),
    Metric("graph_pool_bytes", "B", "graph pools", "lower", "Int64",
           "Private memory pools of CUDA graphs.", "memory.graph_pool_bytes"),
    Metric("workspace_bytes", "B", "workspace", "lower", "Int64",
           "What remains of the peak: temporaries and library workspaces.", "memory.workspace_bytes"),
    Metric("parity_batch_size", "images", "checked at", None, "Int64",
           "Batch that parity was checked at: the timed one unless the fp64 reference would not fit the budget.",
           "checked.batch_size"),
    Metric("parity_tensors", "", "tensors", None, "Int64",
           "Tensors compared.", "checked.tensors"),
    Metric("parity_failed_tensors", "", "failed tensors", "lower", "Int64",
           "Tensors whose error exceeds their tolerance.", "checked.failed"),
    Metric("parity_tolerance", "", "tolerance", None, "Float64",
           "Largest error that would pass for `parity_worst_tensor`.",
           "checked.worst.tolerance"),
    Metric("parity_first_layer", "", "first layer", None, "string",
           "First layer that diverges, where parity failed.", "checked.first_layer"),
    Metric("parity_note", "", "note", None, "string",
           "Why parity was checked at another batch than the timed one.", "checked.note"),
    Metric("minimal_bytes", "B", "minimal bytes", None, "Int64",
           "Least memory traffic of one step.", "cost.bytes"),
    Metric("energy_j", "J", "energy", None, "Float64",
           "Energy over the energy window.", "telemetry.energy_j"),
    Metric("energy_steps", "steps", "energy window", None, "Int64",
           "Steps in the energy window.", "telemetry.energy_steps"),
    Metric("memory_clock_mhz", "MHz", "memory clock", None, "Float64",
           "Median memory clock while sampling.", "telemetry.memory_clock_mhz"),
    Metric("throttle_reasons", "", "throttled by", None, "string",
           "Reasons for which the GPU lowered its clocks while sampling.", "throttle_reasons"),
    Metric("other_processes", "", "other processes", "lower", "Int64",
           "Other processes seen on the same GPU.", "telemetry.other_processes"),
    Metric("start_up_s", "s", "start-up", "lower", "Float64",
           "Wall time until the worker was ready for the case.", "start_up_s"),
    Metric("overhead_s", "s", "overhead", "lower", "Float64",
           "Wall time of the case outside warm-up, samples and turns.", "overhead_s"),
    Metric("environment_hash", "", "environment", None, "string",
           "Hash of the facts in environment.json: only rows with equal hashes compare.", "result.environment_hash"),
    Metric("finished_at", "", "finished", None, "string",
           "When the case finished: ISO 8601, UTC.", "result.finished_at"),
)
# fmt: on

METRICS_BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}


def frame(run: Run) -> pd.DataFrame:
    """The run as a tidy table: one row a result in the plan's order, one column a metric in the order of METRICS.

    Missing values are pd.NA (an empty string in text columns); infinities are kept.
    """
    table = rows(run)
    return pd.DataFrame({metric.name: _column(metric, table) for metric in METRICS})


def _column(metric: Metric, table: list[Row]) -> pd.Series:
    values = [_follow(row, metric.source) for row in table]
    if metric.dtype == "string":
        values = ["" if value is None else str(value) for value in values]
    return pd.Series(values, dtype=metric.dtype)


def _follow(value: Any, source: str) -> Any:  # noqa: ANN401 - of the metric's dtype
    for attribute in source.split("."):
        value = None if value is None else getattr(value, attribute)
    return value
