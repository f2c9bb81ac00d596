"""How a command ends: lines for people, names of files for scripts."""

from pathlib import Path

import pytest

from bench.terminal.output import Output
from bench.terminal.wrapped import broken
from tests.support.screens import console, lines

RUN = Path("reports/cpu-quick-20300101-000000")
FILES = [
    RUN / name for name in ("results.jsonl", "plots/memory.svg", "plots/memory.png", "results.csv", "report.md")
]  # fmt: skip


def test_a_terminal_is_told_the_report_first_and_the_rest_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    to = console(80, terminal=True)
    Output().name_files(to, [*FILES, Path("parity.xml")])
    assert lines(to) == [
        f"report: {RUN}/report.md",
        "beside it: results.jsonl, results.csv, 2 files in plots/",
        "wrote:",
    ]
    assert capsys.readouterr().out == "parity.xml\n"


def test_a_pipe_is_told_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    to = console(80, terminal=False)
    Output().name_files(to, FILES)
    assert lines(to) == [f"report: {RUN}/report.md", "wrote:"]
    assert capsys.readouterr().out.splitlines() == list(map(str, FILES))


def test_no_report_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    for files in ([], [Path("audit.csv")]):
        to = console(80, terminal=True)
        Output().name_files(to, files)
        assert lines(to) == ["wrote:"] * len(files)
    assert capsys.readouterr().out == "audit.csv\n"


@pytest.mark.parametrize("quiet_to_a_terminal", [True, False])
def test_quiet_prints_names_alone(capsys: pytest.CaptureFixture[str], quiet_to_a_terminal: bool) -> None:
    output = Output(quiet=True)
    to = console(80, terminal=quiet_to_a_terminal)
    to.quiet = True
    output.name_files(to, FILES)
    assert lines(to) == []
    assert capsys.readouterr().out.splitlines() == list(map(str, FILES))


@pytest.mark.parametrize(("text", "expected"), [
    ("is fastest at 4.30 [3.94, 4.65] img/s, yes", ["is fastest at", "  4.30 [3.94, 4.65] img/s,", "  yes"]),
    ("the peak of memory is at 12.5 GiB today", ["the peak of memory is at", "  12.5 GiB today"]),
    ("this interval is not within 10 % of it", ["this interval is not within", "  10 % of it"]),
    ("go on with: resbench run --resume a-name", ["go on with:", "  resbench run --resume a-name"]),
    ("go on with: nox -s bench -- --resume a-name", ["go on with:", "  nox -s bench -- --resume a-name"]),
    ("a-name-longer-than-the-whole-width then", ["a-name-longer-than-the-whole-width", "  then"]),
])  # fmt: skip
def test_lines_are_broken_between_words_never_inside_a_figure(text: str, expected: list[str]) -> None:
    assert broken(text, 27, 2) == expected
