"""Lines of a journal that are torn, corrupt or not written: nothing whole is lost."""

import os
from errno import EIO
from io import FileIO
from pathlib import Path

import pytest

from bench.record.journal import JOURNAL_NAME, Journal, read
from bench.types import (
    Session,
)
from tests.support.journals import HERE, PLAN, result, write


def test_a_last_line_whose_blocks_were_lost_is_torn_too(tmp_path: Path) -> None:
    whole = write(tmp_path, HERE, result(0))
    path = tmp_path / JOURNAL_NAME
    path.write_bytes(whole + b'{"type":"result",' + b"\0" * 50 + b'"}\n')
    assert read(tmp_path).results == (result(0),)
    with Journal.resume(tmp_path) as journal:
        assert "line 4 was torn" in journal.notices[0]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("size", [0, 1, 30])
def test_a_journal_without_a_whole_plan_says_what_to_do(tmp_path: Path, size: int) -> None:
    path = tmp_path / JOURNAL_NAME
    path.write_bytes(write(tmp_path / "other")[:size])
    for use in (read, Journal.resume):
        with pytest.raises(ValueError, match=r"results\.jsonl is empty, without a plan: delete it and start the run"):
            use(tmp_path)
    assert path.stat().st_size == size


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, b'{"type":"plan","schema":1'),
        (1, b'{"type":"session","started_at":"now","wall_s":1}'),
        (2, b""),
        (3, b'{"type":"result","case":'),
        (3, b'{"type":"result"}'),
        (3, b'{"type":"wish"}'),
        (3, b'{"type":"plan","schema":1,"name":"a second","cases":[],"settings":{}}'),
        (3, b'{"type":"session","started_at":"\xff","wall_s":1}'),
        (4, b'{"type":"session","started_at":"now","wall_s":"long"}'),  # the last line, but whole
        (4, b"{}"),
    ],
)
def test_a_corrupt_line_is_named_and_nothing_is_changed(tmp_path: Path, number: int, line: bytes) -> None:
    lines = write(tmp_path, HERE, result(0), Session(started_at="now", wall_s=1.0)).split(b"\n")
    lines[number - 1] = line
    path = tmp_path / JOURNAL_NAME
    path.write_bytes(b"\n".join(lines))
    errors = []  # kept, so that no finalizer gives the lock back
    for use in (read, Journal.resume, Journal.resume):
        with pytest.raises(ValueError, match=rf"results\.jsonl, line {number}: .*restore") as error:
            use(tmp_path)
        errors.append(error)
    assert path.read_bytes() == b"\n".join(lines)


def test_an_unknown_schema_is_not_guessed_at(tmp_path: Path) -> None:
    data = write(tmp_path, HERE).replace(b'"schema":1', b'"schema":99').replace(b'"settings"', b'"options"')
    (tmp_path / JOURNAL_NAME).write_bytes(data)
    for use in (read, Journal.resume):
        with pytest.raises(ValueError, match=r"line 1: schema 99, but this resbench reads 1"):
            use(tmp_path)


class FullDisk:
    """A file that takes ten more bytes."""

    def __init__(self, file: FileIO) -> None:
        self.fileno = file.fileno
        self.close = file.close
        self.write = lambda data: file.write(data[:10])


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(tmp_path, HERE)
    with Journal.resume(tmp_path) as journal:
        monkeypatch.setattr(journal, "_file", FullDisk(journal._file))
        with pytest.raises(ValueError, match="No space left on device; what was measured before is safe"):
            journal.append(result(0))
        assert journal.statuses(HERE.hash) == {}
    assert (tmp_path / JOURNAL_NAME).read_bytes() == before


def test_a_disk_that_fails_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(EIO, os.strerror(EIO))

    before = write(tmp_path, HERE)
    with Journal.resume(tmp_path) as journal:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(ValueError, match="Input/output error; what was measured before is safe"):
            journal.append(result(0))
    assert (tmp_path / JOURNAL_NAME).read_bytes() == before


def test_a_record_is_on_the_disk_in_one_write_when_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("names of open files are read from /proc")
    monkeypatch.setattr(os, "fsync", spy)
    with Journal.create(tmp_path / "run", PLAN) as journal:
        assert synced == [JOURNAL_NAME, "run", tmp_path.name]
        journal.append(HERE)
        assert synced[3:] == [JOURNAL_NAME]


def test_a_new_run_takes_a_new_or_an_empty_directory_only(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "a" / "b", PLAN):
        assert (tmp_path / "a" / "b" / JOURNAL_NAME).exists()
    (tmp_path / "empty").mkdir()
    Journal.create(tmp_path / "empty", PLAN).close()
    before = (tmp_path / "empty" / JOURNAL_NAME).read_bytes()
    with pytest.raises(ValueError, match="not empty: pass --resume"):
        Journal.create(tmp_path / "empty", PLAN)
    assert (tmp_path / "empty" / JOURNAL_NAME).read_bytes() == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not empty: pass --resume"):
        Journal.create(tmp_path / "full", PLAN)
    assert [entry.name for entry in (tmp_path / "full").iterdir()] == ["thesis.tex"]
