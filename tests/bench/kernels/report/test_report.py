"""The report of the kernel bench: figures as they follow from the samples, what is judged, and what is not claimed."""

import csv
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from bench.kernels.report import markdown, roofline, terminal
from bench.kernels.report.rows import COLUMNS, CONTENDERS, columns_markdown, frame, records
from bench.kernels.report.totals import BLOCKS, NORMS, TARGETS, judged, target, totals
from bench.kernels.types import Contender, Direction, KernelRun, Op, Outcome
from bench.render.records import Record
from kernels.launch.passes import Pass
from tests.support.repository import ROOT
from tests.support.synthetic_kernels import (
    CACHE,
    FAILED,
    MODEL,
    MOVED,
    ON_CPU,
    ON_GPU,
    OPS,
    PASSED,
    TIMES,
    kernel_run,
    outcome,
    row,
    untimed,
)

README = ROOT / "reports" / "README.md"
ON_A_GPU = kernel_run(*map(outcome, OPS))
ON_A_CPU = kernel_run(*map(untimed, OPS), where=ON_CPU)
# A block whose two products take 2 ms: one has 1.5 ms of bytes to move, the other 1.8 ms of FLOPs at 4e12 a second.
BLOCK = Op(form="bottleneck", shape=(256, 256, 56, 56), dtype="bf16", mode="train", layers={MODEL: 2})
PRODUCTS = (
    replace(row("forward", "block_end", {"fused": 2.0}), flops=4_000_000_000),
    replace(row("backward", "inner_gradient", {"fused": 2.0}), flops=7_200_000_000),
)
WHOLE = tuple(replace(row(direction), floor_bytes=None) for direction in get_args(Direction))
WITH_A_BLOCK = kernel_run(
    *map(outcome, OPS),
    Outcome(op=BLOCK, check=PASSED, rows=(WHOLE[0], PRODUCTS[0], WHOLE[1], PRODUCTS[1])),
    where=replace(ON_GPU, ops=(*OPS, BLOCK)),
)


def report(run: KernelRun) -> str:
    return markdown.render(run, records(run), ())


def test_products_by_a_library_are_named() -> None:
    rows = (WHOLE[0], row("forward", "cublas", {"fused": 2.0, "copy": 1.0}))
    found = report(kernel_run(Outcome(op=BLOCK, check=PASSED, rows=rows), where=WITH_A_BLOCK.survey))
    assert "was measured to be slower: `bottleneck` at 256x256x56x56, forward." in found
    assert "cublas" not in report(WITH_A_BLOCK)


def call(run: KernelRun, form: str, direction: str = "forward", launch: str = "") -> Record:
    """The row of a run."""
    wanted = (form, direction, launch)
    return next(one for one in records(run) if (one["form"], one["direction"], one["launch"]) == wanted)


def printed(run: KernelRun) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(terminal.summary(run, records(run)))
    return capture.get()


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_of_a_row_follow_from_its_samples() -> None:
    found = call(ON_A_GPU, "bn+relu")
    assert found["fused_ms"] == pytest.approx(4.0)
    assert 3.96 <= found["fused_ms_low"] < 4.0 < found["fused_ms_high"] <= 4.04
    assert found["fused_samples"] == 20
    assert found["fused_bytes_per_s"] == pytest.approx(0.3e9 / 4e-3)
    assert found["fused_copy_percent"] == pytest.approx(75)  # 3 ms at 1e11 bytes a second
    assert found["eager_copy_percent"] == pytest.approx(30), "of the same bytes"
    assert found["fused_over_eager"] == pytest.approx(0.4)
    assert found["fused_over_compile"] == pytest.approx(0.8)
    assert found["compile_over_eager"] == pytest.approx(0.5)
    assert (found[f"{MODEL}_layers"], found["status"], found["reason"]) == (6, "valid", "")


def test_a_step_is_the_sum_over_its_layers() -> None:
    """One stem and six of the others, each forward and backward; plain BatchNorm is in no network."""
    found = {total.contender: total for total in totals(records(ON_A_GPU), (MODEL,))}
    for name in ("fused", "eager", "compile"):
        assert found[name].forward_ms == pytest.approx(7 * TIMES[name])
        assert found[name].ms == pytest.approx(14 * TIMES[name])
        assert (found[name].layers, found[name].timed) == (7, 7)
    assert found["fused"].over["eager"].median == pytest.approx(0.4)
    assert found["fused"].over["compile"].median == pytest.approx(0.8)


def test_a_step_weighs_each_ratio_by_its_time() -> None:
    slow: dict[Contender, float] = {"fused": 90.0, "eager": 100.0}
    stem, others, plain = map(outcome, OPS)
    stem = replace(stem, rows=(row("forward", times=slow), row("backward", times=slow)))
    fused = totals(records(kernel_run(stem, others, plain)), (MODEL,))[0]
    assert fused.over["eager"].median == pytest.approx((2 * 90 + 12 * 4) / (2 * 100 + 12 * 10))


def test_blocks_are_added_up_by_themselves() -> None:
    """They have BatchNorms of their own: the sum of both would count these twice."""
    found = {(total.work, total.contender): total for total in totals(records(WITH_A_BLOCK), (MODEL,))}
    assert len(found) == 6
    assert found[NORMS, "fused"] == totals(records(ON_A_GPU), (MODEL,))[0]
    assert found[BLOCKS, "eager"].ms == pytest.approx(4 * TIMES["eager"])
    assert found[BLOCKS, "fused"].layers == 2
    assert BLOCKS in printed(WITH_A_BLOCK)
    assert "the target of at most" in report(WITH_A_BLOCK)
    assert report(WITH_A_BLOCK).count("the target of at most") == report(ON_A_GPU).count("the target of at most"), (
        "not of blocks"
    )


def test_a_roofline_is_of_what_binds() -> None:
    memory = call(WITH_A_BLOCK, "bottleneck", "forward", "block_end")
    arithmetic = call(WITH_A_BLOCK, "bottleneck", "backward", "inner_gradient")
    assert memory["roofline_ms"] == pytest.approx(MOVED / 2 / 1e11 * 1e3)
    assert memory["fused_roofline_percent"] == pytest.approx(75)
    assert arithmetic["roofline_ms"] == pytest.approx(7.2e9 / 4e12 * 1e3)
    assert arithmetic["fused_roofline_percent"] == pytest.approx(90)
    assert arithmetic["fused_copy_percent"] == pytest.approx(75)
    norm = call(ON_A_GPU, "bn+relu")
    assert norm["fused_roofline_percent"] == pytest.approx(norm["fused_copy_percent"]), "it multiplies no matrices"


def test_without_a_rate_of_products_there_is_no_roofline_of_one() -> None:
    ceilings = replace(ON_GPU.ceilings, matmul_flops_per_s={})
    run = replace(WITH_A_BLOCK, survey=replace(WITH_A_BLOCK.survey, ceilings=ceilings))
    assert call(run, "bottleneck", "forward", "block_end")["roofline_ms"] is None
    assert call(run, "bn")["roofline_ms"] == pytest.approx(3.0)
    assert {one["launch"] for one in judged(records(run), CACHE)} == {"statistics", "apply"}


def test_a_step_with_a_layer_that_has_no_time_has_none() -> None:
    incomplete = kernel_run(outcome(OPS[0]), Outcome(op=OPS[1], failure="SIGSEGV"), outcome(OPS[2]))
    fused = totals(records(incomplete), (MODEL,))[0]
    assert (fused.ms, fused.over, fused.timed) == (None, {}, 1)


# --- what is judged, on a GPU -----------------------------------------------------------------------------------------


def test_every_kind_of_pass_has_a_figure() -> None:
    for kind in get_args(Pass):
        assert target({"launch": kind}) == (85 if kind.startswith(("statistics", "reduce")) else 90)
    assert TARGETS.keys() == {kind.split()[0] for kind in get_args(Pass)}
    assert target({"launch": "block_end"}) == 85


def test_launches_on_tensors_that_the_cache_holds_are_not_judged() -> None:
    rows = records(ON_A_GPU)
    assert {one["launch"] for one in judged(rows, CACHE)} == {"statistics", "apply"}
    assert judged(rows, 2 * CACHE) == []


def missed(run: KernelRun) -> str:
    parts = re.split("^## ", report(run), flags=re.MULTILINE)
    return next(part for part in parts if part.startswith("Launches that miss"))


def test_launches_that_move_less_than_the_cache_holds_are_not_judged() -> None:
    small = replace(PRODUCTS[0], bytes=CACHE // 2, launch="covariance")
    run = kernel_run(Outcome(op=BLOCK, check=PASSED, rows=(WHOLE[0], small)), where=replace(ON_GPU, ops=(BLOCK,)))
    assert judged(records(run), CACHE) == []


def test_products_that_miss_their_figure_are_listed() -> None:
    text = missed(WITH_A_BLOCK)
    assert "forward: block_end" in text
    assert "inner_gradient" not in text
    assert "(fp32 1.00 TFLOP/s and bf16 4.00 TFLOP/s)" in text


def test_launches_that_miss_their_figure_are_listed() -> None:
    text = missed(ON_A_GPU)
    assert text.count("forward: statistics") == 3
    assert "forward: apply" not in text
    assert "75 %" in text
    assert "3 of 6 launches on tensors larger than the cache reach" in report(ON_A_GPU)


def test_ratios_are_held_against_their_figures() -> None:
    found = report(ON_A_GPU)
    assert "resnet50 in bf16: 0.40x the time of eager; the target of at most 0.5x is met." in found
    evaluated = replace(ON_A_GPU, survey=replace(ON_GPU, request=replace(ON_GPU.request, mode="eval")))
    assert "the target of at most" not in report(evaluated), "the figure is for training"
    slower = replace(outcome(OPS[1]), rows=(row("forward", times={**TIMES, "fused": 5.0}), row("backward")))
    missed = report(kernel_run(outcome(OPS[0]), slower, outcome(OPS[2])))
    assert "the time of torch.compile; the target of at most 0.85x is missed by 4%." in missed


# --- what is not claimed ----------------------------------------------------------------------------------------------


def test_without_a_gpu_the_fused_kernels_have_no_time_and_no_figure() -> None:
    found = report(ON_A_CPU)
    assert "**The fused kernels are not timed here**: it is interpreted here." in found
    assert "the target of at most" not in found
    assert "Launches" not in found
    lines = [line for line in found.splitlines() if line.startswith("| `bn+relu`") and "10.0" in line]
    assert len(lines) == 2
    assert all("not timed" in line for line in lines)
    assert re.search(r"resnet50 +\| bf16 +\| BatchNorm +\| fused +\| +not timed", found)
    assert call(ON_A_CPU, "bn")["status"] == "valid"
    assert call(ON_A_CPU, "bn", launch="statistics")["status"] == "not-timed"
    assert call(ON_A_CPU, "bn")["reason"] == "fused: it is interpreted here"
    assert "not timed" in printed(ON_A_CPU)


def test_what_failed_parity_has_no_speed_anywhere() -> None:
    wrong = Outcome(op=OPS[1], check=FAILED, rows=(row("forward", times={}), row("backward", times={})))
    run = kernel_run(outcome(OPS[0]), wrong, outcome(OPS[2]))
    found = report(run)
    assert "**Parity failed in 1 op**" in found
    assert "Parity passed" not in found
    assert call(run, "bn+relu")["status"] == "parity-failed"
    assert [call(run, "bn+relu")[f"{name}_ms"] for name in CONTENDERS] == [None] * 4
    assert re.search(r"`bn\+relu` .*\| fail ", found)


def test_what_crashed_and_what_was_not_run_are_rows_with_their_reason() -> None:
    run = kernel_run(outcome(OPS[0]), Outcome(op=OPS[1], failure="SIGSEGV during start-up"), interrupted="budget")
    found = report(run)
    assert "Parity passed in 1. Failed at least in part: 1 op. Not run (budget): 1 op." in found
    assert "SIGSEGV during start-up" in found
    assert (call(run, "bn+relu")["status"], call(run, "bn+relu")["reason"]) == ("crashed", "SIGSEGV during start-up")
    assert (call(run, "bn")["status"], call(run, "bn")["reason"]) == ("not-run", "budget")


def test_a_run_that_was_stopped_at_once_has_a_report() -> None:
    run = kernel_run(interrupted="Ctrl-C")
    assert "3 ops (a form at a shape and dtype), each forward and backward. Not run (Ctrl-C): 3 ops." in report(run)
    assert {one["status"] for one in records(run)} == {"not-run"}
    assert "0 of 7" in printed(run)


def test_a_contender_that_failed_is_named() -> None:
    rows = tuple(replace(one, failures={"compile": "RuntimeError: no"}) for one in outcome(OPS[1]).rows)
    run = kernel_run(outcome(OPS[0]), replace(outcome(OPS[1]), rows=rows), outcome(OPS[2]))
    assert call(run, "bn+relu")["status"] == "crashed"
    assert "compile: RuntimeError: no" in report(run)


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_of_a_run(tmp_path: Path) -> None:
    written = markdown.write(tmp_path / "new", ON_A_GPU)
    names = {str(file.relative_to(tmp_path / "new")) for file in written}
    assert names == {"report.md", "results.csv", "results.json", "plots/roofline-bf16.svg", "plots/roofline-bf16.png"}
    assert all(file.stat().st_size for file in written)
    picture = imread(tmp_path / "new" / "plots" / "roofline-bf16.png")
    assert picture.shape[0] > 300
    assert picture.std() > 0.01
    assert "(plots/roofline-bf16.svg)" in (tmp_path / "new" / "report.md").read_text()
    read = msgspec.json.decode((tmp_path / "new" / "results.json").read_bytes(), type=KernelRun)
    assert read == ON_A_GPU, "every sample"


def test_the_picture_shows_every_time_against_the_copy() -> None:
    rows = records(ON_A_GPU)
    figure = roofline.figures(rows, ON_GPU.ceilings.copy_bytes_per_s)["roofline-bf16"]
    for axis in figure.axes:
        ceiling, *series = axis.get_lines()
        assert set(np.asarray(ceiling.get_ydata())) == {100.0}
        heights = [list(np.asarray(line.get_ydata())) for line in series]
        expected = [[pytest.approx(0.3 / ms * 1e3)] * 3 for ms in (TIMES[name] for name in roofline.SERIES)]
        assert heights == expected
    assert roofline.figures(records(kernel_run()), 1e11) == {}, "nothing to show, no picture"


def test_csv_has_the_columns_that_the_readme_explains() -> None:
    rows = list(csv.DictReader(StringIO(frame(records(ON_A_GPU)).to_csv(index=False))))
    assert len(rows) == 12
    explained: set[str] = set()
    for name in ", ".join(COLUMNS).replace("<model>", MODEL).split(", "):
        if "<contender>" in name:
            explained |= {name.replace("<contender>", contender) for contender in CONTENDERS}
        elif "<a>_over_<b>" in name:
            pairs = ("fused_over_eager", "fused_over_compile", "compile_over_eager")
            explained |= {name.replace("<a>_over_<b>", pair) for pair in pairs}
        else:
            explained.add(name)
    assert set(rows[0]) == explained
    assert columns_markdown() in README.read_text(encoding="utf-8")
