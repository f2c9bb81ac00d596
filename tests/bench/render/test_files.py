"""Files that people name: whole, refused in time, and devices that stay devices."""

import os
from pathlib import Path

import pytest

from bench.render.files import require_writable, write_file


def test_a_file_is_replaced_whole_with_the_folders_above_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "page.md"
    for data in (b"one", b"two"):
        assert write_file(file, data) == file
        assert file.read_bytes() == data
    assert [path.name for path in file.parent.iterdir()] == ["page.md"]


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_file(pipe, b"rows")
    assert os.read(reader, 10) == b"rows"
    os.close(reader)
    assert pipe.is_fifo()


def test_what_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "page.md"
    for refused in (lambda: write_file(below, b""), lambda: require_writable(below)):
        with pytest.raises(
            ValueError,
            match=r"^cannot write .*page.md: (Not a directory|File exists); name a file that can be written$",
        ):
            refused()
