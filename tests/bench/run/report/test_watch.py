"""What a terminal shows while a run goes on: counts and times whole, and lines of finished cases that can be read."""

import re
from dataclasses import replace
from itertools import product

import pytest
from rich.cells import cell_len
from rich.text import Text

from bench.kernels.report import watch as kernel_progress
from bench.run.report.watch import Watch
from bench.sweep import cell
from bench.terminal.progress import bar, shortened
from bench.types import Case, Mode, Plan, Precision, Result, Settings, Status
from tests.support.screens import WIDTHS, console, lines
from tests.support.synthetic_runs import CASE, failed, result

LONGEST = replace(
    CASE,
    model="resnet152",
    mode="train",
    precision="bf16",
    batch_size=256,
    path="compile-reduce-overhead",
    world_size=8,
    kind="parity",
)
MODES: tuple[Mode, ...] = ("infer", "train")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
CASES = tuple(
    replace(CASE, model=model, mode=mode, precision=precision, path=path)
    for model, mode, precision, path in product(
        ("resnet18", "resnet152"), MODES, PRECISIONS, ("eager", "compile-reduce-overhead")
    )
)
WHY = "the 95 % interval of the median is not within 10.0% of it after 3 samples in 3 s"
EMULATED = "bf16 is emulated on this CPU: 7 GFLOP/s, fp32 has 149"


@pytest.mark.parametrize("width", WIDTHS)
def test_count_and_times_are_whole_beside_the_longest_case(width: int) -> None:
    to = console(width, terminal=True)
    with bar(to) as progress:
        task = progress.add_task(f"{LONGEST.key}: compiler", total=5200, completed=1234)
        progress.refresh()
        to.file.truncate(0)
        progress.update(task, completed=4321)
        progress.refresh()
    (drawn, *_) = [re.sub(r"\x1b\[[\d?]*[A-Za-z]", "", line) for line in lines(to) if "4321" in line]
    assert re.search(r" 4321/5200 \d:\d\d:\d\d left (\d:\d\d:\d\d|-:--:--)$", drawn.split("\r")[-1].rstrip()), drawn
    assert "compiler ━" in drawn, "the phase is not cut off"
    assert cell_len(drawn.split("\r")[-1]) <= width


@pytest.mark.parametrize(("width", "expected"), [(30, "resnet50-compile: sampling"), (20, "resnet…ile: sampling")])
def test_a_description_loses_its_middle(width: int, expected: str) -> None:
    assert shortened("resnet50-compile: sampling", width) == expected
    assert len(expected) <= width


def watched(width: int, cases: tuple[Case, ...], *results: Result, terminal: bool = True) -> list[str]:
    """The lines that stay; of a terminal's also those that are drawn over."""
    to = console(width, terminal=terminal)
    watch = Watch(to)  # not entered: no bar between the lines
    watch.started(Plan(name="mine", cases=cases, settings=Settings()), len(cases))
    for one in results:
        watch.case_finished(one)
    return lines(to)


@pytest.mark.parametrize("width", WIDTHS)
def test_lines_of_finished_cases_are_whole(width: int) -> None:
    found = watched(width, CASES, *(result(case, 81.25) for case in CASES))
    assert found[0] == "mine: 16 cases to run (batch 8 · 224 px · cuda)"
    assert max(map(len, found)) <= width
    for number, case in enumerate(CASES, 1):
        (line,) = [line for line in found if line.startswith(f"[{number:>2}/16] valid ")]
        assert f" {case.model}-{case.mode}-{case.precision}-{case.path}" in line
    assert sum("98.5 img/s" in line for line in found) == len(CASES)
    assert sum("(16.5 s)" in line for line in found) == len(CASES)
    assert any("98.5 img/s, 81.250 ms" in line for line in found) is (width > 100)


@pytest.mark.parametrize(("status", "reason"), [(Status.UNSTABLE, WHY), (Status.UNSUPPORTED, EMULATED)])
def test_a_long_reason_comes_below_with_its_figures_whole(status: Status, reason: str) -> None:
    row = result(status=status, reason=reason) if status is Status.UNSTABLE else failed(CASE, status, reason)
    first, *below = watched(80, CASES, replace(row, case=CASES[-1]))[1:]
    assert max(map(len, (first, *below))) <= 80
    assert first.startswith(f"[ 1/16] {status} ")
    assert all(line.startswith(" " * 8) for line in below)
    told = " ".join(" ".join(below).split())
    assert told.endswith(reason)
    assert all(any(figure in line for line in below) for figure in re.findall(r"\d+ (?:GFLOP/s|samples|s|%)", reason))


def test_one_reason_why_many_cases_cannot_run_is_told_once() -> None:
    rows = [failed(case, Status.UNSUPPORTED, EMULATED) for case in CASES[:3]]
    other = failed(CASES[3], Status.UNSUPPORTED, "path gram needs luck")
    found = watched(80, CASES, *rows, other)
    assert sum("GFLOP/s" in line for line in found) == 1
    assert sum("  as above" in line for line in found) == 2
    assert sum("needs luck" in line for line in found) == 1
    assert sum(EMULATED in line for line in watched(80, CASES, *rows, terminal=False)) == 3


def test_off_a_terminal_a_case_is_one_line_with_its_key() -> None:
    _, line = watched(80, CASES, result(status=Status.UNSTABLE, reason=WHY), terminal=False)
    assert line == f"[ 1/16] unstable       {CASE.key}  2000.0 img/s, 4.000 ms, {WHY}  (16.5 s)"


def test_names_tell_cases_apart() -> None:
    search = replace(CASE, kind="max-batch", batch_size=1)
    cases = (CASE, replace(CASE, batch_size=16), search)
    assert [cell.name(case, cell.varying(cases)) for case in cases] == ["b8-eager", "b16-eager", "bmax-eager"]
    assert [cell.name(case, []) for case in (CASE, search)] == ["eager", "bmax-eager"]
    assert cell.common(cases) == "resnet18 · infer · fp32 · 224 px · cuda"
    assert cell.common(()) == ""


def test_lines_of_kernels_are_broken_between_words() -> None:
    to = console(80, terminal=True)
    times = ["eager 10.5 ms,"] * 9
    watch = kernel_progress.Watch(to, bar(to))
    watch.line(Text(" ".join(["[1/2] parity ok  bn-256x64x56x56  forward fused 4.25 ms,", *times])))
    found = lines(to)
    assert max(map(len, found)) <= 80
    assert sum(len(re.findall(r"\d ms,", line)) for line in found) == 10
