"""Workers that answer, and workers that do anything but."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.processes import PATIENCE_S, children, command_line, lives, wait_until

from bench.workers.errors import WorkerCrashedError, WorkerTimeoutError, describe
from bench.workers.parent import SERVING, announce, call, serve, started
from tests.support.repository import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def test_value_comes_back() -> None:
    assert call("tests.support.faulty:add", 2, 3) == 5


def test_worker_inherits_torch_and_has_no_cuda_context() -> None:
    assert call("tests.support.faulty:inherited") == {"torch": True, "entries": True, "cuda": False, "group": True}


def test_exception_is_told_with_its_phase() -> None:
    phases: list[str] = []
    with pytest.raises(WorkerCrashedError) as told:
        call("tests.support.faulty:complain", on_phase=phases.append)
    assert str(told.value) == r"KeyError: 'no such bone\nand a second line' during digging"
    assert phases == ["digging"]


@pytest.mark.parametrize(("entry", "arguments", "cause"), [
    ("segfault", (), "SIGSEGV during digging"),
    ("kill_itself", (), "SIGKILL during start-up"),
    ("stop_in_the_middle_of_its_answer", (), "exit code 7 during start-up"),
    ("no_such_entry", (), "AttributeError: module 'faulty' has no attribute 'no_such_entry' during start-up"),
    ("add", (1, "2"), "TypeError: unsupported operand type(s) for +: 'int' and 'str' during start-up"),
])  # fmt: skip
def test_death_is_told_by_its_cause(entry: str, arguments: tuple[object, ...], cause: str) -> None:
    with pytest.raises(WorkerCrashedError) as told:
        call(f"tests.support.faulty:{entry}", *arguments)
    assert str(told.value) == cause


@pytest.mark.parametrize("politely", [True, False])
@pytest.mark.parametrize("code", [0, 3])
def test_leaving_without_an_answer_is_a_crash(code: int, politely: bool) -> None:
    with pytest.raises(WorkerCrashedError, match=rf"^exit code {code} during start-up$"):
        call("tests.support.faulty:leave", code, politely)


def test_hang_is_ended_with_all_its_children(tmp_path: Path) -> None:
    with pytest.raises(WorkerTimeoutError, match=r"^no result within 10 s, during digging$"):
        call("tests.support.faulty:hang", tmp_path / "pids", timeout_s=10.0)
    worker, child = map(int, (tmp_path / "pids").read_text().split())
    assert not lives(worker)
    wait_until(lambda: not lives(child), "the end of the worker's child")


def test_call_that_is_interrupted_ends_its_worker(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def interrupt(_: str) -> None:
        wait_until(pids.exists, "the worker's start")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call("tests.support.faulty:hang", pids, on_phase=interrupt)
    worker, child = map(int, pids.read_text().split())
    wait_until(lambda: not lives(worker) and not lives(child), "the end of the worker and its child")


def test_output_goes_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    call("tests.support.faulty:shout", "wow", log=log)
    call("tests.support.faulty:shout", "wow again", log=log)
    with pytest.raises(WorkerCrashedError):
        call("tests.support.faulty:segfault", log=log)
    text = log.read_text()
    for words in ("wow\n", "and from C\n", "wow again\n", "Fatal Python error: Segmentation fault", "in segfault"):
        assert words in text
    call("tests.support.faulty:shout", "nobody hears")
    assert capfd.readouterr() == ("", "")


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerCrashedError, match=r"^its log cannot be written \(FileNotFoundError: .* start-up$"):
        call("tests.support.faulty:add", 2, 3, log=tmp_path / "none" / "log")
    assert capfd.readouterr() == ("", "")


def test_temporary_files_of_a_killed_worker_are_gone() -> None:
    phases: list[str] = []
    with pytest.raises(WorkerTimeoutError):
        call("tests.support.faulty:litter", timeout_s=10.0, on_phase=phases.append)
    (left,) = phases
    assert Path(left).parent.name.startswith("resbench-worker-")
    assert not Path(left).parent.exists()


def test_worker_replies_until_it_is_dismissed() -> None:
    with started("tests.support.faulty:take_turns", 1.5) as worker:
        assert worker.answer(PATIENCE_S) is SERVING
        assert [worker.ask(PATIENCE_S), worker.ask(PATIENCE_S)] == [[1.5], [1.5]]
        worker.dismiss()
        assert worker.answer(PATIENCE_S) == "asked 2 times"


def test_worker_that_dies_of_a_question_is_told() -> None:
    with started("tests.support.faulty:take_turns", 0.0) as worker:
        worker.answer(PATIENCE_S)
        with pytest.raises(WorkerCrashedError, match=r"^SIGKILL during start-up$"):
            worker.ask(PATIENCE_S)
        worker.dismiss()


def test_worker_that_is_not_dismissed_ends_with_its_context() -> None:
    with started("tests.support.faulty:take_turns", 1.0) as worker:
        worker.answer(PATIENCE_S)
        process = worker._process
    assert process.exitcode == -signal.SIGKILL


def test_serving_outside_a_worker_does_nothing() -> None:
    serve(lambda: 1 / 0)


def test_announcing_outside_a_worker_does_nothing() -> None:
    announce("nobody listens")


@pytest.mark.parametrize(("error", "line"), [
    (ValueError("first\nsecond"), "ValueError: first"), (ValueError(), "ValueError"), (OSError(" \n "), "OSError"),
])  # fmt: skip
def test_describe(error: Exception, line: str) -> None:
    assert describe(error) == line


def python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )


def test_parent_never_imports_torch() -> None:
    code = "from bench.workers.parent import call; import sys; print(call('tests.support.faulty:add', 2, 3), 'torch' in sys.modules)"
    assert python(code).communicate()[0] == "5 False\n"


def test_worker_does_not_outlive_its_parent(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    parent = python(
        f"from bench.workers.parent import call; from pathlib import Path; call('tests.support.faulty:hang', Path({str(pids)!r}))"
    )
    wait_until(pids.exists, "the worker's start")
    worker, child = map(int, pids.read_text().split())
    assert lives(worker)
    parent.kill()
    wait_until(lambda: not lives(worker) and not lives(child), "the end of the worker and its child")
    parent.communicate()


BROKEN = {
    "ImportError": "ImportError: libgone.so",  # the server swallows it and each worker meets it again
    "OSError": "the server of workers died while importing torch (EOFError: unexpected EOF)",
}


@pytest.mark.parametrize("error", BROKEN)
def test_torch_that_cannot_be_imported_is_told(tmp_path: Path, error: str) -> None:
    (tmp_path / "torch.py").write_text(f"raise {error}('libgone.so')\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "bench", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"Error: torch does not work here: {BROKEN[error]}")
    assert "try `python -c 'import torch'`" in last


def test_ctrl_c_while_torch_is_imported_is_no_traceback() -> None:
    command = [sys.executable, "-m", "bench", "doctor"]
    parent = subprocess.Popen(  # noqa: S603
        command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: [pid for pid in children(parent.pid) if "forkserver" in command_line(pid)], "the server's start")
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to everybody in the foreground
    _, said = parent.communicate()
    assert (parent.returncode, said) == (3, "Stopped.\n")
