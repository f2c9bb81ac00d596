"""Columns of results.csv: values derived by hand from invented samples."""

import subprocess
import sys
from dataclasses import asdict, fields, replace
from io import StringIO
from math import inf, isinf
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.record.metrics import METRICS, frame
from bench.record.rows import TIMED_STATUSES
from bench.render import csv
from bench.types import Case, Cost, Memory, Result, Rounds, Run, Status
from tests.support.synthetic_runs import (
    CASE,
    CEILINGS,
    FAILED,
    MEMORY,
    TELEMETRY,
    every_status,
    failed,
    measurement,
    result,
    run,
    samples,
    sweep,
)

NAMED_COLUMNS = [
    "case", "model", "mode", "precision", "batch_size", "image_size", "path", "device", "world_size", "status",
    "reason", "images_per_s", "images_per_s_low", "images_per_s_high", "speedup_vs_eager", "step_ms_p10",
    "step_ms_p50", "step_ms_p90", "samples", "first_call_s", "compile_break_even_steps", "peak_allocated_bytes",
    "peak_reserved_bytes", "parameter_bytes", "gradient_bytes", "optimizer_bytes", "activation_bytes", "parity",
    "parity_worst_tensor", "parity_error", "parity_eager_error", "flops", "floor_ms", "floor_percent", "mfu",
    "joules_per_image", "sm_clock_mhz", "power_w", "temperature_c",
]  # fmt: skip

# Every column that tells how fast a path is: empty where it must not be told.
SPEEDS = [
    metric.name
    for metric in METRICS
    if metric.name.startswith(("images_per_s", "speedup_vs_eager", "step_ms_", "compile_break_even"))
] + ["samples", "floor_percent", "mfu", "joules_per_image", "wall_step_ms", "confidence_percent", "steady", "converged"]

EAGER_BF16 = replace(CASE, precision="bf16")
COMPILE = replace(CASE, path="compile")


def row(run: Run, case: str = CASE.key) -> dict[str, Any]:
    table = frame(run).set_index("case", drop=False)
    return dict(table.loc[case])


def test_the_documented_columns_come_first_in_their_order() -> None:
    assert [metric.name for metric in METRICS][: len(NAMED_COLUMNS)] == NAMED_COLUMNS
    assert list(frame(run(result())).columns) == [metric.name for metric in METRICS]


def test_names_are_unique_and_every_column_is_described_in_one_sentence() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(metric.description.endswith(".") and metric.title for metric in METRICS)


def test_a_full_row_fills_every_column() -> None:
    """A wrong attribute in the table would raise, or leave its column empty."""
    telemetry = replace(TELEMETRY, throttle_reasons=("software power cap", "board limit"))
    memory = replace(MEMORY, gradient_bytes=1, optimizer_bytes=2, graph_pool_bytes=3)
    full = result(
        COMPILE,
        status=Status.THROTTLED,
        reason="software power cap",
        measurement=measurement(2.0, telemetry=telemetry, memory=memory, turns_note="eager in bf16 failed"),
        parity=replace(FAILED, failed=0, failures=(), note="checked at batch 4"),
        max_batch_size=8,
    )
    values = row(run(result(), full), COMPILE.key)
    assert [name for name, value in values.items() if pd.isna(value) or value == ""] == []
    assert values["throttle_reasons"] == "software power cap; board limit"


def test_columns_that_are_copied_come_from_their_own_field() -> None:
    memory = Memory(**{field.name: 1000 + place for place, field in enumerate(fields(Memory))})
    values = row(run(result(measurement=measurement(4.0, memory=memory))))
    assert {name: values[name] for name in asdict(memory)} == asdict(memory)
    telemetry = asdict(TELEMETRY)
    del telemetry["throttle_reasons"]
    assert {name: values[name] for name in telemetry} == telemetry


def test_throughput_and_percentiles() -> None:
    values = row(run(result(step_ms=4.0)))
    steps = np.sort(samples(4.0))
    assert values["images_per_s"] == pytest.approx(8 / 4e-3)
    assert values["step_ms_p50"] == pytest.approx(4.0)
    # ranks of the 95 % interval of a median of 200: P(Binomial(200, 1/2) < 86) < 0.025 < P(... < 87)
    assert values["images_per_s_low"] == pytest.approx(8e3 / steps[-86])
    assert values["images_per_s_high"] == pytest.approx(8e3 / steps[85])
    assert values["confidence_percent"] == pytest.approx(100 * (steps[-86] - steps[85]) / 2 / 4.0)
    assert values["step_ms_p10"] == pytest.approx(np.percentile(steps, 10))
    assert values["step_ms_p90"] == pytest.approx(np.percentile(steps, 90))
    assert values["step_ms_p99"] == pytest.approx(np.percentile(steps, 99))
    assert values["wall_step_ms"] == pytest.approx(4.4)
    assert values["samples"] == 200


def test_a_percentile_without_enough_samples_is_empty() -> None:
    values = row(run(result(measurement=measurement(4.0, samples_ms=samples(4.0, 50)))))
    assert values["step_ms_p90"] is not pd.NA
    assert values["step_ms_p99"] is pd.NA


def test_speedups_compare_with_eager_of_the_cell_and_with_eager_at_fp32() -> None:
    table = run(
        result(CASE, 4.0),
        result(EAGER_BF16, 2.0),
        result(replace(EAGER_BF16, path="compile"), 1.0),
        result(replace(EAGER_BF16, batch_size=16), 99.0),
    )
    values = row(table, replace(EAGER_BF16, path="compile").key)
    assert values["speedup_vs_eager"] == pytest.approx(2.0)
    assert values["speedup_vs_eager_fp32"] == pytest.approx(4.0)
    for name in ("speedup_vs_eager", "speedup_vs_eager_fp32"):
        assert 0.99 * values[name] < values[f"{name}_low"] < values[name] < values[f"{name}_high"] < 1.01 * values[name]
    eager = row(table)
    assert [eager[f"speedup_vs_eager{end}"] for end in ("", "_low", "_high")] == [1.0, 1.0, 1.0]
    lone = row(table, replace(EAGER_BF16, batch_size=16).key)
    assert lone["speedup_vs_eager"] == 1.0
    assert lone["speedup_vs_eager_fp32"] is pd.NA


def test_speedups_come_from_turns_and_not_from_two_rows() -> None:
    """Eager's own row was measured while the machine was slow."""
    turns: dict[str, Rounds] = {CASE.key: ((6.0,), (9.0,)) * 10, COMPILE.key: ((4.0,), (6.0,)) * 10}
    compiled = result(COMPILE, measurement=measurement(4.0, first_call_s=21.0, turns=turns))
    values = row(run(result(CASE, 12.0), compiled), COMPILE.key)
    assert [values[f"speedup_vs_eager{end}"] for end in ("", "_low", "_high")] == [1.5, 1.5, 1.5]
    assert values["compile_break_even_steps"] == 20e3 / (4.0 * 0.5)


def test_without_turns_there_is_no_speedup() -> None:
    """Eager did not fit beside the path."""
    alone: dict[str, Rounds] = {"other": ((1.0,),), COMPILE.key: ((1.0,),)}
    values = row(run(result(CASE), result(COMPILE, measurement=measurement(4.0, turns=alone))), COMPILE.key)
    assert values["images_per_s"] is not pd.NA
    assert values["speedup_vs_eager"] is pd.NA
    assert values["compile_break_even_steps"] is pd.NA


@pytest.mark.parametrize(
    "other",
    [
        replace(COMPILE, model="resnet50"),
        replace(COMPILE, mode="train"),
        replace(COMPILE, precision="bf16"),
        replace(COMPILE, batch_size=4),
        replace(COMPILE, image_size=32),
        replace(COMPILE, device="cpu"),
        replace(COMPILE, world_size=2),
    ],
    ids=lambda case: case.key,
)
def test_eager_of_another_cell_is_no_baseline(other: Case) -> None:
    values = row(run(result(CASE), result(other)), other.key)
    assert values["images_per_s"] is not pd.NA
    assert values["speedup_vs_eager"] is pd.NA
    assert values["peak_vs_eager"] is pd.NA


def test_an_eager_row_without_a_speed_is_no_baseline() -> None:
    wrong = result(status=Status.PARITY_FAILED, reason="output@1 differs", parity=FAILED)
    assert row(run(wrong, result(COMPILE)), COMPILE.key)["speedup_vs_eager"] is pd.NA


@pytest.mark.parametrize(
    ("path", "step_ms", "first_call_s", "steps"),
    [
        ("compile", 2.0, 11.0, 5000.0),  # 10 s over 2 ms a step
        ("compile", 1.0, 1.0005, 1.0),  # 0.5 ms over 3 ms a step, rounded up
        ("cuda-graph", 2.0, 0.5, 0.0),  # its first call is the shorter one
        ("compile", 4.0, 11.0, inf),  # as slow as eager
        ("compile", 5.0, 0.5, inf),  # shorter first call, but slower
        ("channels_last", 2.0, 11.0, None),  # nothing to compile or to capture
        ("unheard-of", 2.0, 11.0, None),
    ],
)
def test_break_even(path: str, step_ms: float, first_call_s: float, steps: float | None) -> None:
    case = replace(CASE, path=path)
    turns: dict[str, Rounds] = {CASE.key: ((4.0,),), case.key: ((step_ms,),)}
    timed = measurement(step_ms, first_call_s, turns=turns)
    values = row(run(result(CASE, 4.0), result(case, measurement=timed)), case.key)
    found = values["compile_break_even_steps"]
    assert found is pd.NA if steps is None else found == steps


@pytest.mark.parametrize(
    ("flops", "traffic", "floor_ms"),
    [(2 * 10**9, 10**7, 2.0), (10**8, 3 * 10**8, 3.0)],  # bound by arithmetic; by memory
)
def test_floor_and_mfu(flops: int, traffic: int, floor_ms: float) -> None:
    values = row(run(result(step_ms=4.0, cost=Cost(flops=flops, bytes=traffic))))
    assert values["floor_ms"] == pytest.approx(floor_ms)
    assert values["floor_percent"] == pytest.approx(100 * floor_ms / 4.0)
    assert values["mfu"] == pytest.approx(flops / 4e-3 / 1e12)
    assert (values["flops"], values["minimal_bytes"]) == (flops, traffic)


@pytest.mark.parametrize("ceilings", [None, replace(CEILINGS, matmul_flops_per_s={"bf16": 1e12})])
def test_without_the_ceiling_there_is_no_floor(ceilings: object) -> None:
    values = row(run(result(), ceilings=ceilings))
    assert [values[name] for name in ("floor_ms", "floor_percent", "mfu")] == [pd.NA] * 3
    assert values["images_per_s"] == pytest.approx(2000)


def test_energy_per_image() -> None:
    assert row(run(result()))["joules_per_image"] == pytest.approx(1300 / (1000 * 8))
    short = measurement(4.0, telemetry=replace(TELEMETRY, energy_j=None, energy_steps=0))
    assert row(run(result(measurement=short)))["joules_per_image"] is pd.NA


def test_memory_relative_to_eager() -> None:
    lean = measurement(2.0, memory=replace(MEMORY, peak_allocated_bytes=3 << 28))
    assert row(run(result(), result(COMPILE, measurement=lean)), COMPILE.key)["peak_vs_eager"] == pytest.approx(0.25)


def test_a_baseline_of_no_memory_gives_no_ratio() -> None:
    nothing = measurement(4.0, memory=replace(MEMORY, peak_allocated_bytes=0))
    assert row(run(result(measurement=nothing), result(COMPILE)), COMPILE.key)["peak_vs_eager"] is pd.NA


def test_the_outcome_of_a_search_is_its_batch_size() -> None:
    case = replace(CASE, kind="max-batch", batch_size=1)
    found = result(case, None, parity=None, max_batch_size=384)
    values = row(run(result(CASE), found), case.key)
    assert (values["batch_size"], values["max_batch_size"], values["kind"]) == (384, 384, "max-batch")
    nothing = row(run(failed(case, Status.OOM, "not even one")), case.key)
    assert nothing["batch_size"] is pd.NA


def test_overhead_is_all_but_warm_up_and_sampling() -> None:
    values = row(run(result()))
    assert values["overhead_s"] == pytest.approx(0.5 + 1 + 2 + 3)
    assert values["start_up_s"] == pytest.approx(0.5)


@pytest.mark.parametrize("status", list(Status))
def test_only_statuses_whose_figures_stand_have_speeds(status: Status) -> None:
    values = row(run(result(), result(COMPILE, status=status, reason="because")), COMPILE.key)
    empty = {name for name in SPEEDS if values[name] is pd.NA}
    assert empty == (set() if status in TIMED_STATUSES else set(SPEEDS))
    assert {Status.VALID, Status.UNSTABLE, Status.THROTTLED, Status.RECOMPILED, Status.SHARED_GPU} == TIMED_STATUSES


@pytest.mark.parametrize("status", list(Status))
def test_failed_parity_takes_the_speed_whatever_the_status_says(status: Status) -> None:
    values = row(run(result(), result(COMPILE, status=status, reason="because", parity=FAILED)), COMPILE.key)
    assert values["parity"] == "fail"
    assert {name for name in SPEEDS if values[name] is pd.NA} == set(SPEEDS)


def test_parity_columns() -> None:
    values = row(run(result(status=Status.PARITY_FAILED, reason="differs", parity=FAILED)))
    assert values["parity_worst_tensor"] == "grad:conv1.weight@1"
    assert isinf(values["parity_error"])
    assert values["parity_eager_error"] == pytest.approx(2e-3)
    assert (values["parity_batch_size"], values["parity_tensors"], values["parity_failed_tensors"]) == (8, 62, 1)
    assert values["parity_first_layer"] == "layer1.0.conv1"
    assert row(run(result(parity=None)))["parity"] == ""


def test_a_first_row_that_failed_drops_no_column() -> None:
    table = frame(every_status())
    assert table["status"].iloc[0] == "unsupported"
    assert list(table.columns) == [metric.name for metric in METRICS]
    assert sorted(table["status"]) == sorted(Status)
    assert table["peak_allocated_bytes"].notna().sum() == 6


def test_no_result_gives_an_empty_table_with_all_columns() -> None:
    table = frame(run(pending=(CASE,)))
    assert len(table) == 0
    assert list(table.columns) == [metric.name for metric in METRICS]
    assert csv.render(table) == ",".join(metric.name for metric in METRICS) + "\n"


def test_rows_come_in_the_order_of_the_run() -> None:
    cases = [replace(CASE, batch_size=batch) for batch in (8, 1, 64, 2)]
    assert list(frame(run(*map(result, cases)))["case"]) == [case.key for case in cases]


def test_csv_round_trip() -> None:
    table = frame(every_status())
    text = csv.render(table)
    read = pd.read_csv(
        StringIO(text), keep_default_na=False, na_values={m.name: [""] for m in METRICS if m.dtype != "string"}
    )
    assert list(read.columns) == list(table.columns)
    for metric in METRICS:
        again = read[metric.name].astype(metric.dtype)
        pd.testing.assert_series_equal(again, table[metric.name].astype(metric.dtype), check_exact=True)


def test_csv_has_empty_cells_whole_integers_and_infinities_but_never_nan() -> None:
    slow = result(COMPILE, 9.0)
    text = csv.render(frame(run(failed(replace(CASE, path="folded"), Status.CRASHED, "SIGSEGV"), slow, result())))
    assert "nan" not in text.lower()
    assert "<NA>" not in text
    assert ",inf," in text
    assert f",{MEMORY.peak_allocated_bytes}," in text
    assert f"{MEMORY.peak_allocated_bytes}.0" not in text


def test_importing_metrics_imports_no_torch() -> None:
    code = (
        "import sys, bench.record.metrics, bench.report.write, bench.report.terminal; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603


def test_a_grid_is_complete() -> None:
    grid = sweep(batches=(8,))
    table = frame(grid)
    assert len(table) == len(grid.plan.cases) == 2 * 2 * 2 * 7
    compiled = table[(table["path"] == "compile") & (table["status"] == "valid")]
    assert np.allclose(compiled["speedup_vs_eager"].astype(float), 1.9)
    assert isinstance(grid.results[0], Result)
