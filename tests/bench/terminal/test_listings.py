"""The tables of the commands at 80, 100 and 140 columns: every figure whole, in the line of what it is about."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import RenderableType

from bench.audit import command
from bench.kernels.report import terminal
from bench.kernels.report.rows import records
from bench.kernels.types import KernelRun
from bench.machine import command as machine_command
from bench.report import terminal as report_terminal
from bench.sweep import command as sweep_command
from bench.terminal import tables
from bench.traffic import report as traffic_report
from bench.traffic.machines import MACHINES
from bench.traffic.types import Counted, Operation, Seen, Traffic
from bench.types import Status
from tests.support.screens import WIDTHS, shown, together
from tests.support.synthetic_kernels import ON_CPU, ON_GPU, OPS, kernel_run, outcome, untimed
from tests.support.synthetic_runs import CASE, FAILED, PASSED, result, run
from tests.support.traffic_cases import request

AT_EACH_WIDTH = pytest.mark.parametrize("width", WIDTHS)
SCHEMES = (
    "eager", "inductor", "triton", "triton-rebuild", "gram", "gram-rebuild", "cudnn-fused", "folded", "folded-triton",
)  # fmt: skip


def holds(printed: RenderableType, width: int, rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines, in which every row has all its words in one."""
    found = shown(printed, width)
    assert [row for row in rows if not together(found, *map(str, row))] == []
    return found


@AT_EACH_WIDTH
def test_lists(width: int) -> None:
    paths: Any = sweep_command.paths()
    found = holds(tables.table(paths), width, [(row["path"], ", ".join(row["modes"])) for row in paths])
    told = {word for row in paths for word in row["what it is"].split()}
    assert [word for word in told if not together(found, word)] == [], "words are whole"
    presets: Any = sweep_command.presets()
    holds(tables.table(presets), width, [(row["preset"], row["cases"]) for row in presets])
    models: Any = sweep_command.models()
    holds(tables.table(models), width, [(row["model"], ", ".join(map(str, row["blocks"]))) for row in models])


@AT_EACH_WIDTH
def test_parity(width: int) -> None:
    worst = replace(PASSED.worst, tensor="grad:layer4.2.downsample.0.weight@3", error=0.000123, tolerance=0.000456)
    paths = ("eager", "compile-reduce-overhead", "triton-cuda-graph")
    cases = [
        replace(CASE, kind="parity", precision=precision, mode=mode, path=path)
        for precision in ("fp32", "bf16") for mode in ("infer", "train") for path in paths
    ]  # fmt: skip
    good = [result(case, None, parity=replace(PASSED, worst=worst)) for case in cases]
    bad = result(
        replace(cases[1], precision="fp16"), None, parity=FAILED, status=Status.PARITY_FAILED, reason="it differs"
    )
    rows = [(case.path, "valid", "0.00012", "0.00046") for case in cases]
    found = holds(
        report_terminal.verdicts(run(*good, bad)), width, [*rows, (bad.case.path, "parity-failed", "inf", "0.004")]
    )
    assert found[0] == "resnet18 · batch 8 · 224 px · cuda"
    assert bool(together(found, FAILED.worst.tensor, "inf")) is (width > 80)


@AT_EACH_WIDTH
def test_what_a_device_can_run(width: int) -> None:
    precisions = ("fp32", "tf32", "bf16", "fp16")
    nothing = {"reason": "", "emulated": ""}
    cells = [
        {**nothing, "path": path, "mode": mode, "precision": precision, "untimed": f"{path} {mode} {precision}"}
        for path in ("compile-reduce-overhead", "eager") for mode in ("train", "infer") for precision in precisions
    ]  # fmt: skip
    sheet, reasons = machine_command.capabilities("cpu", cells)
    assert len(reasons) == 16
    word = "parity" if width < 140 else "parity only"
    numbers = [(f"{word} ({4 * row + 1})", f"{word} ({4 * row + 2})") for row in range(4)]
    found = holds(sheet, width, numbers)
    assert together(found, "eager", "infer", f"{word} (15)")


def summary(run: KernelRun) -> RenderableType:
    return terminal.summary(run, records(run))


@AT_EACH_WIDTH
def test_kernels(width: int) -> None:
    everything = kernel_run(*map(outcome, OPS))
    found = holds(summary(everything), width, [("fused", "56.0", "0.40x", "0.80x"), ("eager", "140")])
    assert found[0] == "all work of one step · resnet50 · bf16 · BatchNorm"
    holds(summary(kernel_run(*map(untimed, OPS), where=ON_CPU)), width, [("fused", "not", "timed"), ("eager", "140")])
    calls = kernel_run(*map(outcome, OPS), where=replace(ON_GPU, request=replace(ON_GPU.request, models=())))
    figures = [(direction, "pass", "4.00", "10.0", "5.00") for direction in ("forward", "backward")]
    assert len(together(holds(summary(calls), width, figures), *figures[0])) == len(OPS)


@AT_EACH_WIDTH
def test_traffic(width: int) -> None:
    traffic = tuple(
        Traffic(
            scheme=name,
            operations=(Operation(part="layer1.0", direction="forward", name="a", bytes=10**13 - of, flops=10**13),),
        )
        for of, name in enumerate(SCHEMES)
    )
    counted = Counted(
        request=request(*SCHEMES), traffic=traffic, device="h200", ceilings=MACHINES["h200"].ceilings,
        seen=tuple(Seen(scheme=name, read_bytes=10**13, written_bytes=0) for name in SCHEMES),
    )  # fmt: skip
    totals: Any = traffic_report.totals(counted)
    columns = ("scheme", "MB/image", "counters MB/image", "over counted", "over the least", "floor ms/step")
    sheet = tables.table(totals, later=traffic_report.LATER)
    holds(sheet, width, [[row[name] for name in columns] for row in totals])
    (part,) = parts = traffic_report.by_part(counted)
    found = shown(tables.table(parts), width)
    assert sum(line.count(part["eager"]) for line in found) == len(SCHEMES)
    assert {word for line in found for word in line.split()} >= set(SCHEMES)


@AT_EACH_WIDTH
def test_audit(width: int) -> None:
    row = {
        "registers": 255, "spill_bytes": 1024, "stack_bytes": 65536, "static_shared_bytes": 0, "load_bits": 128,
        "dynamic_shared_bytes": 232448, "store_bits": 128, "main_bits": 128, "wide": True, "resident_warps": 16,
        "of_warps": 64, "limited_by": "shared memory", "faults": [],
    }  # fmt: skip
    forms = ["running statistics", "bottleneck+downsampling", "bottleneck+projection"]
    rows = [
        row | {"arch": arch, "kernel": kernel, "forms": forms}
        for arch in ("sm_90", "sm_100") for kernel in ("_parameter_gradients", "_apply")
    ]  # fmt: skip
    sheet = command.table(rows)
    found = holds(sheet, width, [(form, 255, 1024, 128) for form in forms])
    assert len(together(found, "bottleneck+downsampling", "255")) == 4
    assert len(together(found, "bottleneck+downsampling", "232448")) == (4 if width > 80 else 0)
    assert bool(together(found, "16 of 64 warps (shared memory)")) is (width > 100)
