"""The command report over the journal of a fake runner."""

import json
from pathlib import Path

import pytest

from bench.terminal.exits import Exit
from bench.types import Status
from tests.support.fake_runner import CPU, FakeRunner, becomes, invoke

pytestmark = pytest.mark.usefixtures("here")


def test_report_renders_again_and_leaves_the_journal_alone(fake: FakeRunner, here: Path) -> None:
    fake.becomes = becomes(Status.OOM)
    assert invoke(*CPU, "--out", "here").exit_code == Exit.FAILED
    written = (here / "here" / "results.jsonl").read_bytes()
    (here / "here" / "report.md").unlink()
    assert invoke("report", "here").exit_code == 0
    assert json.loads(invoke("report", "here", "--json").stdout)["exit_code"] == 0
    assert (here / "here" / "report.md").is_file()
    assert (here / "here" / "results.jsonl").read_bytes() == written


def test_corrupt_journal_is_refused_by_report(here: Path) -> None:
    (here / "results.jsonl").write_text("not json\n{}\n")
    ended = invoke("report", ".")
    assert ended.exit_code == Exit.USAGE
    assert "line 1" in ended.stderr
