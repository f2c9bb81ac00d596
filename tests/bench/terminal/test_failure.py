"""Errors that nobody foresaw: one paragraph, a file to send, and exit code 3."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench.cli import main
from bench.kernels.command import _models
from bench.run import runner
from bench.sweep import command as sweep_command
from bench.terminal import failure
from bench.workers.errors import is_for_people
from tests.support.repository import ROOT


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="resbench")


def raised(error: Exception) -> Exception:
    """With a traceback."""
    try:
        raise error
    except type(error) as caught:
        return caught


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def reports(folder: Path) -> list[Path]:
    return list(folder.glob("resbench-failure-*.txt"))


def test_the_report_is_in_the_run_and_says_everything(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["resbench", "run", "--out", "my run"])
    (tmp_path / "run").mkdir()
    told = failure.tell(raised(KeyError("caf\udce9")), tmp_path / "run")
    (report,) = reports(tmp_path / "run")
    assert "KeyError: 'caf\\udce9'" in told
    assert str(report) in told
    assert "\n" not in told
    text = report.read_text(encoding="utf-8")
    for words in ("command: resbench run --out 'my run'", "python: 3.", "torch: 2.", "Traceback", "in raised"):
        assert words in text
    assert reports(temporary) == []


def test_without_a_run_the_report_is_in_the_best_place_that_there_is(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(temporary) in failure.tell(raised(KeyError("x")), tmp_path / "never made")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    failure.tell(raised(KeyError("x")))
    assert len(reports(tmp_path)) == 1


def test_where_nothing_can_be_written_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert "Traceback (most recent call last)" in failure.tell(raised(KeyError("x")))


def test_an_error_of_ours_is_told_from_one_of_a_library() -> None:
    with pytest.raises(ValueError, match="unknown") as ours:
        _models(("resnet19",), None)
    assert is_for_people(ours.value)
    with pytest.raises(ValueError, match="Expecting") as theirs:
        json.loads("{")
    assert not is_for_people(theirs.value)


@pytest.mark.parametrize("error", [KeyError("path"), ValueError("not for people"), OSError(5, "Input/output error")])
def test_any_error_of_a_command_is_one_paragraph(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(sweep_command, "table", fail)
    ended = invoke("list", "paths")
    assert ended.exit_code == 3
    assert ended.stderr.startswith(f"Error: resbench itself failed: {type(error).__name__}: ")
    assert "(bench/sweep/command.py, line " in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    (report,) = reports(temporary)
    assert str(report) in ended.stderr


def test_an_error_of_a_run_is_reported_in_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(directory: Path, *_: object, **__: object) -> None:
        directory.mkdir()
        raise ZeroDivisionError

    monkeypatch.setattr(runner, "run", fail)
    ended = invoke("run", "--preset", "cpu-quick", "--out", "here")
    assert (ended.exit_code, len(reports(tmp_path / "here"))) == (3, 1)


def test_click_keeps_its_own_errors(temporary: Path) -> None:
    assert invoke("list", "nothing").exit_code == 2
    assert invoke("report", "nowhere").exit_code == 2
    assert reports(temporary) == []


def test_a_package_that_is_missing_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError('libgone.so: cannot open shared object file')\n")
    done = subprocess.run(
        [sys.executable, "-m", "bench", "list", "paths"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "TMPDIR": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert "ImportError: libgone.so: cannot open shared object file" in done.stderr
    assert len(reports(tmp_path)) == 1
