"""What is printed where the terminal knows few characters, and where nobody reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.record.journal import Journal
from bench.terminal import streams
from tests.support.exhaustive import exhaustive
from tests.support.repository import ROOT
from tests.support.synthetic_runs import every_status

SAID = "a \u2013 b \u00d7 語 … ±━│┏ \udce9"
ENCODINGS: dict[str, dict[str, str]] = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "the C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def resbench(
    *arguments: str, stdout: int = subprocess.PIPE, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "bench", *arguments],
        env={**plain, "PYTHONPATH": str(ROOT), **(variables or {})},
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", b"a - b x ? ... +/--|+ \xe9"),
        ("latin-1", b"a - b \xd7 ? ... \xb1-|+ \xe9"),
        ("utf-8", SAID[:-1].encode() + b"\xe9"),
    ],
)
def test_characters_that_an_encoding_lacks_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, printed: bytes
) -> None:
    """And an undecodable file name stays as it is."""
    file = tmp_path / "printed"
    with file.open("w", encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        streams.settle()
        assert sys.stdout.encoding == stream.encoding
        print(SAID, end="")  # noqa: T201
        assert streams.finish() == ""
    assert file.read_bytes() == printed


@pytest.mark.parametrize("encoding", ["the C locale", *exhaustive("ascii", "latin-1")])
def test_every_kind_of_output_prints_in(tmp_path: Path, encoding: str) -> None:
    made = every_status()
    with Journal.create(tmp_path / "run", made.plan) as journal:
        for record in (made.environment, *made.results):
            assert record is not None
            journal.append(record)
    done = resbench("report", str(tmp_path / "run"), variables=ENCODINGS[encoding])
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"[1,997, 2,003]" in done.stdout
    assert b"report.md" in done.stdout
    assert done.stdout.isascii() == (encoding != "latin-1"), "which has the \u00b7 of a title"


def test_help_prints_in_ascii() -> None:
    done = resbench("run", "--help", variables=ENCODINGS["ascii"])
    assert (done.returncode, done.stderr, done.stdout.isascii()) == (0, b"", True)


@pytest.mark.parametrize("arguments", [("list", "models"), ("list", "models", "--json"), ("--help",)])
def test_a_closed_pipe_ends_quietly(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = resbench(*arguments, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told() -> None:
    with Path("/dev/full").open("wb") as full:
        done = resbench("list", "models", stdout=full.fileno())
    assert done.returncode == 3
    assert done.stderr == b"Error: not everything could be printed: No space left on device\n"


def test_a_stream_that_was_closed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    streams.settle()
    print("nobody hears")  # noqa: T201
    assert streams.finish() == ""
