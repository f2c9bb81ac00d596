"""Machines that lack a home, an account, a temporary directory, or have one with a long name."""

import atexit
import getpass
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import current_process
from pathlib import Path

import pytest

from bench.workers import places
from tests.support.repository import ROOT

LONG = "x" * 100
CACHES = ("TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "MPLCONFIGDIR", "TORCH_HOME")


@pytest.fixture(autouse=True)
def at_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """An ordinary machine that is all in tmp_path; what is to be done at the end of the process."""
    for name in ("tmp", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("LOGNAME", "somebody")
    for name in CACHES:
        monkeypatch.setenv(name, "")  # so that what is set is undone
        monkeypatch.delenv(name)
    config: dict[str, str] = current_process()._config  # type: ignore[attr-defined]
    monkeypatch.setitem(config, "tempdir", "")
    monkeypatch.delitem(config, "tempdir")
    left: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", left.append)
    return left


def end(left: list[Callable[[], None]]) -> None:
    for function in reversed(left):
        function()


def test_an_ordinary_machine_is_left_alone(tmp_path: Path, at_end: list[Callable[[], None]]) -> None:
    before = dict(os.environ)
    places.settle(tmp_path / "run")
    assert (dict(os.environ), at_end) == (before, [])
    assert {file.name for file in tmp_path.rglob("*")} == {"tmp", "home"}


def no_temporary_directory() -> str:
    raise FileNotFoundError(2, "No usable temporary directory found")


def test_without_a_temporary_directory_the_run_lends_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_end: list[Callable[[], None]]
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", no_temporary_directory)
    places.settle(tmp_path / "run")
    lent = tmp_path / "run" / places.TEMPORARY
    assert lent.is_dir()
    assert os.environ["TMPDIR"] == tempfile.tempdir == str(lent)
    (lent / "left").touch()
    end(at_end)
    assert not (tmp_path / "run").exists()


def test_what_is_in_the_directory_of_the_run_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_end: list[Callable[[], None]]
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", no_temporary_directory)
    places.settle(tmp_path / "home")
    (tmp_path / "home" / "results.jsonl").touch()
    end(at_end)
    assert [file.name for file in (tmp_path / "home").iterdir()] == ["results.jsonl"]


def test_no_temporary_directory_at_all_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", no_temporary_directory)
    with pytest.raises(ValueError, match="set TMPDIR to a directory that can"):
        places.settle()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write to .*file: Not a directory; name another directory"):
        places.settle(tmp_path / "file")


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 54321"), OSError("No username set")])
def test_a_user_without_an_account_has_a_name(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_: int) -> None:
        raise error

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", fail)
    places.settle()
    assert getpass.getuser() == f"user-{os.getuid()}"


def test_without_a_home_there_is_one_for_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_end: list[Callable[[], None]]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    places.settle()
    own = Path(os.environ["HOME"])
    assert own.parent == tmp_path / "tmp"
    assert own.stat().st_mode & 0o777 == 0o700
    assert all(os.environ[name].startswith(f"{own}/") for name in CACHES)
    places.settle()
    assert Path(os.environ["HOME"]) == own
    end(at_end)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_home_that_cannot_be_written_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings of git, weights that were downloaded before."""
    home = tmp_path / "home"
    (home / ".cache" / "torch").mkdir(parents=True)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != home and access(path, mode))  # root may write anywhere
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    places.settle()
    places.settle()
    assert (os.environ["HOME"], os.environ["TRITON_CACHE_DIR"]) == (str(home), "/mine")
    assert "TORCH_HOME" not in os.environ
    (own,) = (tmp_path / "tmp").iterdir()
    assert os.environ["MPLCONFIGDIR"] == str(own / "matplotlib")


@pytest.mark.parametrize("name", ["tmp", LONG])
def test_sockets_have_a_place_however_long_the_name_of_the_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_end: list[Callable[[], None]], name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    places.place_sockets()
    places.place_sockets()
    address = f"{current_process()._config['tempdir']}/listener-12345678"  # type: ignore[attr-defined]
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind(address)
        listener.listen()
        caller.connect(address)
        (own,) = folder.iterdir()
        assert [file.name for file in own.iterdir()] == ["listener-12345678"]
        assert own.stat().st_mode & 0o777 == 0o700
    end(at_end)
    assert list(folder.iterdir()) == []


def test_workers_work_where_nothing_has_a_place(tmp_path: Path) -> None:
    """A long TMPDIR, no home, no name; and no character but ASCII for what they print."""
    folder = tmp_path / LONG
    folder.mkdir()
    plain = {name: value for name, value in os.environ.items() if name not in ("LOGNAME", "USER", *CACHES)}
    code = "from bench.workers.entry import remote; from bench.workers.parent import Terms, call\n"
    code += "from pathlib import Path; faulty = remote('tests.support.faulty'); print(call(faulty.places))\n"
    code += "Terms(log=Path('log')).call(faulty.shout, '\\u2013')"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        env={
            **plain,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder),
            "HOME": "/nonexistent",
            "PYTHONIOENCODING": "ascii",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{ {'temporary': True, 'home': True} }\n"
    assert (tmp_path / "log").read_text(encoding="utf-8").startswith("\u2013\n")
    assert not list(folder.glob("resbench-*"))
    assert not list(folder.glob("pymp-*"))
