"""What a run prints at its end in a terminal of 80, 100 and 140 columns: whole figures, and the verdict in words."""

import re
from dataclasses import replace
from functools import cache
from itertools import product

import pandas as pd
import pytest

from bench.record.metrics import frame
from bench.render import text
from bench.render.records import Record
from bench.report import closing
from bench.report.order import records
from bench.report.terminal import summary
from bench.terminal.wrapped import say
from bench.types import Case, Mode, Precision, Result, Run, Status
from tests.support.screens import WIDTHS, console, lines, shown, together
from tests.support.synthetic_runs import CASE, FAILED, MEMORY, every_status, failed, measurement, result, run, sweep

LONG_PATHS = ("eager", "compile-reduce-overhead", "compile-max-autotune", "triton-cuda-graph")
STATUSES = (Status.VALID, Status.SHARED_GPU, Status.UNSTABLE, Status.PARITY_FAILED)
TERMINAL = pytest.mark.parametrize("terminal", [False, True])
AT_EACH_WIDTH = pytest.mark.parametrize("width", WIDTHS)


def demanding(*, models: tuple[str, ...] = ("resnet18",), batches: tuple[int, ...] = (4096,)) -> Run:
    """Figures of seven digits under the longest names and marks, in both modes and two precisions."""
    modes: tuple[Mode, ...] = ("infer", "train")
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    cells = product(models, batches, modes, precisions, zip(LONG_PATHS, STATUSES, strict=True))
    return run(
        *(
            _large(replace(CASE, model=model, batch_size=batch, mode=mode, precision=precision, path=path), status)
            for model, batch, mode, precision, (path, status) in cells
        )
    )


def _large(case: Case, status: Status) -> Result:
    memory = replace(MEMORY, peak_allocated_bytes=(1 << 30) - 1)
    step_ms = (4.1 if case.path == "eager" else 3.3177) * case.batch_size / 4096
    row = result(case, status=status, reason="why", measurement=measurement(step_ms, memory=memory))
    return replace(row, parity=FAILED) if status is Status.PARITY_FAILED else row


RUNS = {
    "large": demanding(),
    "several models and batches": demanding(models=("resnet18", "resnet152"), batches=(1024, 4096)),
    "every status": every_status(),
    "sweep": sweep(batches=(1, 256), paths=("eager", "compile-max-autotune")),
    "one path": sweep(models=("resnet18",), paths=("compile",), precisions=("fp32",)),
}
NAMES = pytest.mark.parametrize("name", RUNS)


@cache
def table(name: str) -> pd.DataFrame:
    """Its intervals take seconds."""
    return frame(RUNS[name])


def rows(name: str) -> list[Record]:
    return [row for row in records(table(name)) if row["status"] != Status.UNSUPPORTED]


# --- the table ---


@TERMINAL
@AT_EACH_WIDTH
@NAMES
def test_every_row_is_one_line_of_whole_figures(name: str, width: int, terminal: bool) -> None:
    found = shown(summary(records(table(name))), width, terminal=terminal)
    for row in rows(name):
        figures = [
            text.significant(row["images_per_s"]), text.ratio(row["speedup_vs_eager"]),
            text.size(row["peak_allocated_bytes"]),
        ]  # fmt: skip
        known = [figure for figure in figures if figure != text.MISSING]  # a column without any is left out
        assert together(found, row["path"], row["status"], *known), row["case"]
    assert len(together(found, "MiB")) + len(together(found, "GiB")) == sum(
        row["peak_allocated_bytes"] is not None for row in rows(name)
    )


@AT_EACH_WIDTH
@NAMES
def test_what_is_the_same_in_all_rows_is_in_the_title(name: str, width: int) -> None:
    title, *others = shown(summary(records(table(name))), width)
    assert title.endswith("224 px · cuda")
    headings = {word for line in others[:3] for word in line.split()}
    assert {"path", "status", "img/s", "peak", "memory"} <= headings, "whole words"
    assert not headings & {"image", "device", "processes", "parity"}
    for axis in ("model", "mode", "precision", "batch"):
        values = {str(row["batch_size" if axis == "batch" else axis]) for row in rows(name)}
        said = [value for value in values if f" {value} " in f" {title} "]
        assert said == (list(values) if len(values) == 1 else [])
        assert len(values) > 1 or axis not in headings


@pytest.mark.parametrize(("width", "speed", "speedup"), [
    (80, "1,234,590", "1.24x ±0.01"),
    (100, "1,234,590 ±1,793", "1.24x ±0.01"),
    (140, "1,234,590 [1,232,803, 1,236,383]", "1.24x [1.23, 1.24]"),
])  # fmt: skip
def test_more_width_shows_more_of_the_intervals(width: int, speed: str, speedup: str) -> None:
    found = shown(summary(records(table("large"))), width)
    (line, *_) = together(found, "shared-gpu")
    assert f" {speed} " in line
    assert f" {speedup} " in line


def test_a_mark_stands_beside_the_figures_and_a_failed_parity_has_no_speed() -> None:
    found = shown(summary(records(table("every status"))), 80)
    assert together(found, "eager", "valid", "2,000", "1.00x", "3.00", "GiB")
    for mark, speed in (("unstable", "32,000"), ("throttled", "64,000"), ("recompiled", "128,000")):
        assert together(found, mark, speed)
    (line,) = together(found, "parity-failed")
    assert line.split()[3:5] == [text.MISSING, text.MISSING]


@AT_EACH_WIDTH
def test_parity_has_a_column_only_where_it_was_not_checked(width: int) -> None:
    assert "parity" not in "".join(shown(summary(records(frame(run(result())))), width))
    unchecked = result(replace(CASE, path="compile"), parity=None)
    assert together(shown(summary(records(frame(run(result(), unchecked)))), width), "compile", "not", "checked")


@AT_EACH_WIDTH
def test_searches_for_the_largest_batch_have_a_table_of_their_own(width: int) -> None:
    search = replace(CASE, path="compile", kind="max-batch", batch_size=1)
    found = shown(summary(records(frame(run(result(), result(search, None, max_batch_size=1234))))), width)
    assert found[0] == "resnet18 · infer · fp32 · batch 8 · 224 px · cuda"
    assert "largest batch that fits · resnet18 · infer · fp32 · 224 px · cuda" in found
    assert together(found, "compile", "valid", "1,234")


def test_of_nothing_there_is_no_table() -> None:
    assert shown(summary(records(frame(run()))), 80) == []


# --- the last lines ---


def said(told: list[str], width: int, *, terminal: bool = True) -> list[str]:
    to = console(width, terminal=terminal)
    for line in told:
        say(to, line)
    return lines(to)


@AT_EACH_WIDTH
def test_the_verdict_in_words(width: int) -> None:
    lean = measurement(1.0, memory=replace(MEMORY, peak_allocated_bytes=3 << 29))
    found = said(
        closing.lines(records(frame(run(result(), result(replace(CASE, path="compile"), measurement=lean)))), 0), width
    )
    assert max(map(len, found)) <= width
    told = " ".join(" ".join(found).split())
    assert re.search(
        r"resnet18 inference, batch 8: compile in fp32 is fastest at 8,000 \[[\d,]+, [\d,]+\] img/s, "
        r"4\.00x \[\d\.\d\d, \d\.\d\d\] as fast as eager in fp32, with a peak memory of 1\.50 GiB, "
        r"0\.50x that of eager in fp32\. Parity passed\.",
        told,
    )
    assert not re.search(r"[`*]", told), "no Markdown"


@AT_EACH_WIDTH
@NAMES
def test_no_line_is_too_long_and_no_figure_is_broken(name: str, width: int) -> None:
    told = closing.lines(records(table(name)), 0)
    found = said(told, width)
    assert max(map(len, found)) <= width
    whole = [figure for line in told for figure in re.findall(r"\S+ \[.*?\]", line)]
    assert [figure for figure in whole if not any(figure in line for line in found)] == []
    assert not [line for line in found if re.match(r"\s*(img/s|MiB|GiB|cases?)\b", line)]


def test_off_a_terminal_a_line_stays_one_line() -> None:
    told = closing.lines(records(table("sweep")), 0)
    assert said(told, 80, terminal=False) == told


def test_a_verdict_for_each_model_and_mode() -> None:
    verdicts = [line for line in closing.lines(records(table("sweep")), 0) if "fastest" in line]
    assert [line.split(",")[0] for line in verdicts] == [
        "resnet18 inference", "resnet18 training", "resnet50 inference", "resnet50 training",
    ]  # fmt: skip


def test_a_line_a_reason_why_cases_have_no_figures_failures_first() -> None:
    why = "bf16 is emulated on this CPU: 7 GFLOP/s, fp32 has 149"
    emulated = [failed(replace(CASE, precision="bf16", path=path), Status.UNSUPPORTED, why) for path in LONG_PATHS]
    broken = failed(replace(CASE, path="folded"), Status.CRASHED, "signal SIGSEGV")
    first, second, *_ = closing.lines(records(frame(run(result(), *emulated, broken))), 0)
    assert first == "crashed, resnet18-infer-fp32-b8-i224-folded-cuda: signal SIGSEGV"
    assert second.startswith("unsupported, 4 cases of eager, ")
    assert second.endswith(f"and triton-cuda-graph: {why}")


def test_a_command_is_never_broken() -> None:
    command = "resbench run --resume 'reports/a name with blanks-20300101-000000'"
    to = console(80, terminal=True)
    say(to, f"14 of 16 cases were not run (the budget is spent); go on with: {command}")
    assert f"  {command}" in lines(to)
