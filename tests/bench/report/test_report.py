"""Reports: what is shown, what is left out, and that pictures are the same every time."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.record.glossary import STATUSES, columns_markdown, statuses_markdown
from bench.record.metrics import METRICS, frame
from bench.report import markdown
from bench.report.order import records
from bench.report.terminal import summary
from bench.types import FINE, Rounds, Run, Session, Status
from tests.support.repository import ROOT
from tests.support.screens import shown
from tests.support.synthetic_runs import (
    CASE,
    FAILED,
    PASSED,
    every_status,
    failed,
    measurement,
    result,
    run,
    samples,
    sweep,
    written,
)

COMPILE = replace(CASE, path="compile")
README = ROOT / "reports" / "README.md"


def rendered(run: Run) -> str:
    return markdown.render(run, records(frame(run)))


def headings(report: str) -> list[str]:
    return re.findall(r"^## (.*)$", report, flags=re.MULTILINE)


def section(report: str, heading: str) -> str:
    return re.split(r"^## ", report.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]


def lines_with(report: str, *words: str) -> list[str]:
    return [line for line in report.splitlines() if all(word in line for word in words)]


# --- words ---


# --- report.md ---


def test_the_verdict_names_path_speed_speedup_memory_and_parity() -> None:
    lean = replace(CASE, precision="bf16")
    fast = measurement(1.0, memory=replace(measurement(1.0).memory, peak_allocated_bytes=3 << 29))
    report = rendered(
        run(result(CASE, 4.0), result(lean, 2.0), result(replace(lean, path="compile"), measurement=fast))
    )
    (verdict,) = lines_with(report, "**resnet18 inference, batch 8**")
    assert "`compile` in bf16 is fastest at 8,000 [" in verdict
    assert re.search(r"2\.00x \[\d\.\d\d, \d\.\d\d\] as fast as eager in bf16", verdict)
    assert re.search(r"4\.00x \[\d\.\d\d, \d\.\d\d\] as fast as eager in fp32", verdict)
    assert "with a peak memory of 1.50 GiB, 0.50x that of eager in bf16" in verdict
    assert "Parity passed." in verdict
    assert "marked" not in verdict


def test_the_verdict_is_about_the_largest_batch() -> None:
    big = [replace(case, batch_size=64) for case in (CASE, COMPILE)]
    report = rendered(run(result(CASE, 4.0), result(COMPILE, 1.0), result(big[0], 8.0), result(big[1], 16.0)))
    (verdict,) = lines_with(report, "is fastest")
    assert "batch 64" in verdict
    assert "`eager` in fp32 is fastest at 8,000 [" in verdict
    assert "No path beats eager here." in verdict


def test_the_verdict_admits_what_it_cannot_tell_apart_and_what_is_marked() -> None:
    close = result(replace(CASE, path="channels_last"), 3.999)
    report = rendered(run(result(CASE, 4.0), replace(close, status=Status.UNSTABLE, reason="noisy", parity=None)))
    (verdict,) = lines_with(report, "is fastest")
    assert "cannot tell it from `eager` in fp32" in verdict
    assert "Its parity was not checked." in verdict
    assert "Its row is marked unstable." in verdict


def test_rows_are_not_told_apart_where_the_turns_do_not() -> None:
    """Their throughputs are far apart, but were measured minutes apart."""
    turns: dict[str, Rounds] = {CASE.key: ((2.0,), (4.0,), (6.0,)), COMPILE.key: ((3.0,),) * 3}
    report = rendered(run(result(CASE, 6.0), result(COMPILE, measurement=measurement(3.0, turns=turns))))
    (verdict,) = lines_with(report, "is fastest")
    assert "1.33x [0.67, 2.00] as fast as eager in fp32" in verdict
    assert "cannot tell it from `eager` in fp32" in verdict


def test_the_best_path_is_the_one_that_gains_most_by_turns() -> None:
    """The throughput of the other is higher, but was measured minutes apart."""
    folded = replace(CASE, path="folded")
    gains = {COMPILE: 3.0, folded: 2.0}
    rows = [
        result(case, measurement=measurement(ms, turns={CASE.key: ((gains[case],),), case.key: ((1.0,),)}))
        for case, ms in ((COMPILE, 2.0), (folded, 1.9))
    ]
    report = rendered(run(result(CASE, 6.0), *rows))
    (verdict,) = lines_with(report, "is fastest")
    assert "`compile` in fp32 is fastest at 4,000 [" in verdict
    assert "cannot tell it from `folded`" in verdict
    assert lines_with(section(report, "Best path"), "`compile`")
    assert not lines_with(section(report, "Best path"), "`folded`")
    (verdict,) = lines_with(rendered(run(*rows)), "is fastest")
    assert "`folded` in fp32" in verdict, "without eager, by throughput"


def test_why_there_is_no_speedup_is_said() -> None:
    alone = measurement(1.0, turns_note="eager in fp32 does not run beside it: OutOfMemoryError: full")
    report = rendered(run(result(COMPILE, measurement=alone)))
    (verdict,) = lines_with(report, "is fastest")
    assert "It is not compared with eager: eager in fp32 does not run beside it: OutOfMemoryError: full." in verdict
    assert "- No speed-up for some rows: eager in fp32 does not run" in section(report, "Throughput")


def test_a_marked_baseline_is_named() -> None:
    noisy = result(CASE, 4.0, status=Status.THROTTLED, reason="software power cap")
    (verdict,) = lines_with(rendered(run(noisy, result(COMPILE, 1.0))), "is fastest")
    assert "The baseline, eager in fp32, is marked throttled." in verdict


def test_without_eager_there_is_no_speedup() -> None:
    report = rendered(run(result(COMPILE, 1.0)))
    assert "It is not compared with eager" in report
    assert "1.00x" not in report


def test_parity_failed_rows_have_no_speed_anywhere(tmp_path: Path) -> None:
    """2345.678 img/s at 3.4106 ms: unique figures that may not appear in any file."""
    wrong = result(COMPILE, 3.4106, status=Status.PARITY_FAILED, reason="output@1 differs", parity=FAILED)
    files = written(tmp_path, run(result(CASE, 4.0), wrong))
    report = (tmp_path / "report.md").read_text()
    (line,) = lines_with((tmp_path / "results.csv").read_text(), COMPILE.key)
    for figure in ("3.41", "2345", "2,345", "1.17"):  # step, throughput, speed-up
        assert figure not in report
        assert figure not in line
        assert not any(figure.encode() in file.read_bytes() for file in files if file.suffix == ".svg")
    for heading in ("Best path", "Throughput", "Peak memory", "Latency of inference"):
        assert "compile" not in section(report, heading)
    assert "**Parity failed for 1 case**" in report
    assert lines_with(section(report, "Parity"), "`compile`", "fail", "inf", "`layer1.0.conv1`")
    assert "3.41" not in " ".join(shown(summary(records(frame(run(wrong)))), 200))


def test_every_section_of_a_full_report() -> None:
    grid = sweep(models=("resnet18",), batches=(1, 8))
    extra = (
        result(replace(CASE, kind="max-batch"), None, parity=None, max_batch_size=384),
        failed(replace(CASE, image_size=64), Status.OOM, "tried to allocate 2 GiB"),
        result(replace(CASE, image_size=96), status=Status.UNSTABLE, reason="noisy"),
    )
    full = run(*grid.results, *extra, pending=(replace(CASE, batch_size=512),))
    report = rendered(full)
    assert headings(report) == [
        "Best path",
        "Environment",
        "Throughput",
        "Peak memory",
        "Latency of inference",
        "Cost of compilation",
        "Power and clocks",
        "Parity",
        "What failed, and why",
        "Marked rows",
        "Still to run",
        "What the paths decided",
        "Harness overhead",
    ]
    assert "384" in section(report, "Peak memory")
    assert "training" not in section(report, "Latency of inference")
    assert "\n\n\n" not in report
    assert not re.search(r"\bnan\b|<NA>|None", report)


def test_sections_without_data_are_left_out() -> None:
    bare = measurement(4.0, telemetry=None, memory=replace(measurement(4.0).memory, peak_allocated_bytes=None))
    train = replace(CASE, mode="train")
    report = rendered(
        run(
            result(train, measurement=bare, parity=None, cost=None, phases_s={}),
            environment=None,
            ceilings=None,
            sessions=(),
        )
    )
    assert headings(report) == ["Best path", "Throughput"]
    assert "of floor |" not in report
    assert "pareto" not in report


def test_a_run_without_results() -> None:
    report = rendered(run(pending=(CASE,), environment=None, ceilings=None, sessions=()))
    assert "No case has a result yet. 1 case still to run." in report
    assert headings(report) == ["Still to run"]


def test_a_parity_run_has_a_parity_table_and_no_verdict() -> None:
    case = replace(CASE, kind="parity")
    report = rendered(run(result(case, None, phases_s={}), ceilings=None, sessions=()))
    assert headings(report) == ["Environment", "Parity"]
    assert "Parity passed in all 1 checked case" in report
    assert "fastest" not in report


def test_every_failure_is_listed_with_its_reason() -> None:
    report = rendered(every_status())
    failures, marks = section(report, "What failed, and why"), section(report, "Marked rows")
    for status in ("crashed", "oom", "timeout", "parity-failed", "not-timed", "unsupported"):
        assert f"### {status}" in failures
    for status in ("unstable", "throttled", "recompiled", "shared-gpu"):
        assert f"### {status}" in marks
    assert "signal SIGSEGV \\| &lt;frame> second line" in failures
    assert all(one.case.key in failures + marks for one in every_status().results if one.status not in FINE)


@pytest.mark.parametrize("status", [Status.NOT_TIMED, Status.UNSUPPORTED])
def test_cases_without_a_time_are_grouped_by_reason(status: Status) -> None:
    cases = [replace(CASE, path=path, batch_size=batch) for path in ("cuda-graph", "compile") for batch in (1, 2, 4)]
    skipped = [failed(case, status, "needs CUDA") for case in cases]
    lines = lines_with(rendered(run(result(), *skipped)), "needs CUDA")
    assert lines == ["- `compile` and `cuda-graph` (6 cases): needs CUDA"]


def test_an_interrupted_run_says_why_and_what_is_left() -> None:
    sessions = (Session(started_at="2030-01-01T00:00:00+00:00", wall_s=20.0, interrupted="the budget of 8m is spent"),)
    left = section(rendered(run(result(), pending=(COMPILE,), sessions=sessions)), "Still to run")
    assert "1 of 2 cases" in left
    assert "the budget of 8m is spent" in left
    assert f"- `{COMPILE.key}`" in left


def test_notices_come_first() -> None:
    report = rendered(run(result(), notices=("line 7 was torn and is dropped",)))
    assert report.index("line 7 was torn") < report.index("1 case: 1 valid")


def test_overhead_is_wall_time_over_measured_time() -> None:
    overhead = section(rendered(run(result())), "Harness overhead")
    assert "33.0 s of wall time in 1 sitting" in overhead
    assert "10.0 s were warm-up, samples and turns with eager: a ratio of 3.30" in overhead
    assert "Start-up took 0.500 s per case" in overhead


def test_break_even_beside_eagers_first_call() -> None:
    slow = replace(COMPILE, precision="bf16")
    report = section(
        rendered(
            run(
                result(CASE, 4.0),
                result(COMPILE, measurement=measurement(2.0, 11.0)),
                result(replace(CASE, precision="bf16"), 4.0),
                result(slow, measurement=measurement(5.0, 11.0)),
            )
        ),
        "Cost of compilation",
    )
    assert len(lines_with(report, "`eager`", " 1.00 ")) == 2
    assert lines_with(report, "`compile`", " 11.0 ", " 5,000 ")
    assert lines_with(report, "`compile`", " never ")


def test_parity_at_another_batch_is_said() -> None:
    note = "fp64 at batch 256 would take 20 minutes"
    big = replace(CASE, batch_size=256)
    parity = section(rendered(run(result(big, parity=replace(PASSED, note=note)))), "Parity")
    assert lines_with(parity, "batch 8", "`grad:conv1.weight@1`", "3.0e-03", "2.0e-03", " 62 ")
    assert f"- {note}" in parity
    assert "checked at" not in section(rendered(run(result(CASE))), "Parity")


def test_decisions_are_grouped() -> None:
    chosen = {"layer1.0.conv1": "fused", "layer1.0.conv2": "separate", "layer2.0.conv1": "fused"}
    decided = section(rendered(run(result(choices=chosen))), "What the paths decided")
    assert f"- `{CASE.key}`: fused: `layer1.0.conv1`, `layer2.0.conv1`; separate: `layer1.0.conv2`" in decided


def test_columns_without_values_are_left_out_and_places_are_named_where_they_vary() -> None:
    one = rendered(run(result()))
    assert "gradients" not in section(one, "Peak memory")
    assert "### resnet18 inference\n" in one
    two = rendered(run(result(), result(replace(CASE, image_size=64))))
    assert "### resnet18 inference, 64 px\n" in two
    assert "### resnet18 inference, 224 px\n" in two


def test_rows_are_in_reading_order() -> None:
    shuffled = sweep(
        models=("resnet50", "resnet18"), precisions=("bf16", "fp32"), batches=(8, 1), paths=("compile", "eager")
    )
    found = [
        (row["model"], row["mode"], row["batch_size"], row["precision"], row["path"])
        for row in records(frame(shuffled))
    ]
    assert found[:5] == [
        ("resnet18", "infer", 1, "fp32", "eager"),
        ("resnet18", "infer", 1, "fp32", "compile"),
        ("resnet18", "infer", 1, "bf16", "eager"),
        ("resnet18", "infer", 1, "bf16", "compile"),
        ("resnet18", "infer", 8, "fp32", "eager"),
    ]
    assert found[-1] == ("resnet50", "train", 8, "bf16", "compile")


# --- plots ---


# --- files ---


# --- reports/README.md ---


def test_the_readme_explains_every_column_and_status() -> None:
    readme = README.read_text()
    assert columns_markdown() in readme
    assert statuses_markdown() in readme
    assert set(STATUSES) == set(Status)
    assert [line.split("`")[1] for line in columns_markdown().splitlines()[2:]] == [metric.name for metric in METRICS]


def test_the_readme_names_every_file_of_a_run(tmp_path: Path) -> None:
    readme = README.read_text()
    for file in written(tmp_path, run(result())):
        name = file.name if file.parent == tmp_path else f"plots/*{file.suffix}"
        assert f"`{name}`" in readme


def test_samples_have_the_median_they_claim() -> None:
    """The figures that the tests above derive by hand stand on this."""
    assert float(np.median(samples(4.0))) == pytest.approx(4.0)
