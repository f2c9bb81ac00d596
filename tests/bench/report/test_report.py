"""Reports: what is shown, what is left out, and that pictures are the same every time."""

import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from tests.support.exhaustive import exhaustive
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from tests.support.screens import shown
from tests.support.synthetic_runs import (
    CASE,
    CEILINGS,
    ENVIRONMENT,
    FAILED,
    PASSED,
    every_status,
    failed,
    measurement,
    result,
    run,
    samples,
    sweep,
)

from bench.record.metrics import METRICS, frame
from bench.report import markdown, plots
from bench.render import text
from bench.record.glossary import STATUSES, columns_markdown, statuses_markdown
from bench.report.order import records
from bench.report.terminal import summary
from bench.report.write import write
from bench.types import FINE, Rounds, Run, Session, Status
from tests.support.repository import ROOT

COMPILE = replace(CASE, path="compile")
README = ROOT / "reports" / "README.md"


def rendered(run: Run) -> str:
    return markdown.render(run, frame(run))


def headings(report: str) -> list[str]:
    return re.findall(r"^## (.*)$", report, flags=re.MULTILINE)


def section(report: str, heading: str) -> str:
    return re.split(r"^## ", report.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]


def lines_with(report: str, *words: str) -> list[str]:
    return [line for line in report.splitlines() if all(word in line for word in words)]


# --- words ---


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.significant(1234.5), "1,234"),
        (text.significant(12.345), "12.3"),
        (text.significant(0.0012345), "0.00123"),
        (text.significant(0.0), "0"),
        (text.significant(None), text.MISSING),
        (text.size(512), "512 B"),
        (text.size(46_779_648), "44.6 MiB"),
        (text.size(3 << 30), "3.00 GiB"),
        (text.rate(989e12, "FLOP/s"), "989 TFLOP/s"),
        (text.ratio(2.314, 2.281, 2.339), "2.31x [2.28, 2.34]"),
        (text.ratio(1.0, 1.0, 1.0), "1.00x"),
        (text.ratio(None), text.MISSING),
        (text.interval(2345.0, 2331.0, 2360.0), "2,345 [2,331, 2,360]"),
        (text.spread(2345.0, 2331.2, 2360.0), "2,345 ±15"),
        (text.spread(31.4, 31.38, 31.41), "31.4 ±0.1"),
        (text.spread(None, None, None), text.MISSING),
        (text.ratio_spread(2.31, 2.28, 2.335), "2.31x ±0.03"),
        (text.ratio_spread(1.0, 1.0, 1.0), "1.00x"),
        (text.ratio_spread(None, None, None), text.MISSING),
        (text.percent(12.34), "12 %"),
        (text.percent(2.34), "2.3 %"),
        (text.steps(float("inf")), "never"),
        (text.steps(5000.0), "5,000"),
        (text.scientific(0.00123), "1.2e-03"),
        (text.scientific(float("inf")), "inf"),
        (text.prose("a | <b>\n  c"), "a \\| &lt;b> c"),
        (text.listing(["a", "b", "c"]), "a, b and c"),
        (text.count(1, "case"), "1 case"),
    ],
)
def test_values_as_text(shown: str, expected: str) -> None:
    assert shown == expected


def test_long_reasons_are_cut_with_a_sign() -> None:
    shown = text.prose("word " * 1000)
    assert len(shown) <= text.REASON_WIDTH
    assert shown.endswith("…")


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
    files = write(tmp_path, run(result(CASE, 4.0), wrong))
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
    assert "3.41" not in " ".join(shown(summary(frame(run(wrong))), 200))


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


def test_with_few_batches_bars_rank_the_paths_best_on_top() -> None:
    grid = sweep(models=("resnet18",), precisions=("fp32",), batches=(8,))
    figures = plots.figures(frame(grid))
    names = [label.get_text() for label in figures["throughput"].axes[0].get_yticklabels()]
    assert names[-1] == "compile-max-autotune, fp32"
    assert names[0] == "eager, fp32"
    leanest = [label.get_text() for label in figures["memory"].axes[0].get_yticklabels()]
    assert leanest[-1] == "compile-max-autotune, fp32"
    widths = [bar.get_bbox().width for bar in figures["throughput"].axes[0].patches if isinstance(bar, Rectangle)]
    assert widths == sorted(widths)
    assert widths[0] == pytest.approx(8e3 / (0.9 + 0.06 * 8))


def test_with_many_batches_lines_run_over_them() -> None:
    grid = sweep(models=("resnet18",), precisions=("fp32", "bf16"), batches=(1, 8, 64), paths=("eager", "compile"))
    axes = plots.figures(frame(grid))["throughput"].axes
    assert [axis.get_title() for axis in axes] == ["resnet18 inference", "resnet18 training"]
    assert [len(axis.lines) for axis in axes] == [4, 4]
    assert [np.asarray(line.get_xdata()).tolist() for line in axes[0].lines] == [[1, 8, 64]] * 4
    assert np.asarray(axes[0].lines[0].get_ydata()).tolist() == pytest.approx(
        [1e3 * b / (0.9 + 0.06 * b) for b in (1, 8, 64)]
    )


def test_colour_is_the_path_and_marker_the_precision() -> None:
    grid = sweep(models=("resnet18",), batches=(1, 8, 64), paths=("eager", "compile"))
    lines = plots.figures(frame(grid))["throughput"].axes[0].lines
    assert len({line.get_color() for line in lines}) == 2
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 2
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 4


def test_more_than_two_precisions_take_a_facet_each() -> None:
    grid = sweep(models=("resnet18",), precisions=("fp32", "tf32", "bf16"), batches=(1, 8, 64), paths=("eager",))
    titles = [axis.get_title() for axis in plots.figures(frame(grid))["throughput"].axes]
    assert titles[:3] == ["resnet18 inference, fp32", "resnet18 inference, tf32", "resnet18 inference, bf16"]


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    points = {"a": (10, 100.0), "b": (10, 90.0), "c": (20, 95.0), "d": (30, 200.0), "e": (40, 200.0), "f": (5, 1.0)}
    rows = [{"name": name, "peak_allocated_bytes": m, "images_per_s": s} for name, (m, s) in points.items()]
    assert [row["name"] for row in plots.frontier(rows)] == ["f", "a", "d"]


@pytest.mark.parametrize("batches", [(8,), *exhaustive((1, 8, 64))])
def test_pictures_are_not_blank_and_the_same_every_time(batches: tuple[int, ...]) -> None:
    grid = sweep(models=("resnet18",), batches=batches, paths=("eager", "compile"))

    def draw() -> dict[str, Figure]:
        return plots.figures(frame(grid))

    assert list(draw()) == ["throughput", "memory", "pareto"]
    for (name, figure), again in zip(draw().items(), draw().values(), strict=True):
        svg, png = plots.encode(figure, "svg"), plots.encode(figure, "png")
        assert svg == plots.encode(again, "svg"), name
        assert png == plots.encode(again, "png"), name
        assert b"<dc:date>" not in svg
        assert np.unique(imread(BytesIO(png)).reshape(-1, 4), axis=0).shape[0] > 10


def test_no_speed_no_pictures() -> None:
    assert plots.figures(frame(run(failed(CASE, Status.OOM, "too large")))) == {}


# --- files ---


def test_write_returns_the_files_it_wrote(tmp_path: Path) -> None:
    files = write(tmp_path, sweep(models=("resnet18",), batches=(8,), paths=("eager", "compile")))
    pictures = {f"plots/{name}.{kind}" for name in ("throughput", "memory", "pareto") for kind in ("svg", "png")}
    assert {str(file.relative_to(tmp_path)) for file in files} == {
        "results.csv",
        "report.md",
        "environment.json",
        *pictures,
    }
    found = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {str(file.relative_to(tmp_path)) for file in files}  # no temporary file stays
    links = re.findall(r"!\[.*?\]\((.*?)\)", (tmp_path / "report.md").read_text())
    assert sorted(links) == ["plots/memory.svg", "plots/pareto.svg", "plots/throughput.svg"]


def test_writing_again_replaces_and_removes_stale_pictures(tmp_path: Path) -> None:
    write(tmp_path, run(result()))
    (tmp_path / "results.jsonl").write_text("the journal")
    write(tmp_path, run(pending=(CASE,)))
    assert not list((tmp_path / "plots").iterdir())
    assert "No case has a result yet" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "results.jsonl").read_text() == "the journal"


def test_environment_json(tmp_path: Path) -> None:
    write(tmp_path, run(result()))
    content = json.loads((tmp_path / "environment.json").read_text())
    assert content["hash"] == ENVIRONMENT.hash
    assert content["facts"] == ENVIRONMENT.facts
    assert "changed_sources" not in content
    assert content["ceilings"]["copy_bytes_per_s"] == CEILINGS.copy_bytes_per_s
    assert content["settings"]["confidence"] == 0.005


def test_sources_that_are_not_as_committed_are_named(tmp_path: Path) -> None:
    changed = replace(ENVIRONMENT, changed_sources=("bench/measure/timing.py", "kernels/launch/tiles.py"))
    write(tmp_path, run(result(), environment=changed))
    assert json.loads((tmp_path / "environment.json").read_text())["changed_sources"] == list(changed.changed_sources)
    assert "| changed sources | bench/measure/timing.py and kernels/launch/tiles.py |" in re.sub(
        " +", " ", (tmp_path / "report.md").read_text()
    )


def test_a_directory_that_cannot_be_written_is_a_plain_error(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("not a directory")
    with pytest.raises(ValueError, match="cannot write the report"):
        write(target, run(result()))


# --- reports/README.md ---


def test_the_readme_explains_every_column_and_status() -> None:
    readme = README.read_text()
    assert columns_markdown() in readme
    assert statuses_markdown() in readme
    assert set(STATUSES) == set(Status)
    assert [line.split("`")[1] for line in columns_markdown().splitlines()[2:]] == [metric.name for metric in METRICS]


def test_the_readme_names_every_file_of_a_run(tmp_path: Path) -> None:
    readme = README.read_text()
    for file in write(tmp_path, run(result())):
        name = file.name if file.parent == tmp_path else f"plots/*{file.suffix}"
        assert f"`{name}`" in readme


def test_samples_have_the_median_they_claim() -> None:
    """The figures that the tests above derive by hand stand on this."""
    assert float(np.median(samples(4.0))) == pytest.approx(4.0)
