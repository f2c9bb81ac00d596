"""Workers that answer, and workers that do anything but."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.workers.child import announce, serve
from bench.workers.entry import Entry
from bench.workers.errors import WorkerCrashedError, WorkerTimeoutError, describe, is_for_people
from bench.workers.parent import Terms, call
from resnet.models.build import build_model
from tests.support import faulty
from tests.support.processes import PATIENCE_S, children, command_line, lives, wait_until
from tests.support.repository import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_value_comes_back() -> None:
    assert call(faulty.add, 2, 3) == 5


def test_worker_inherits_torch_and_has_no_cuda_context() -> None:
    assert call(faulty.inherited) == {"torch": True, "entries": True, "cuda": False, "group": True}


def test_exception_is_told_with_its_phase() -> None:
    phases: list[str] = []
    with pytest.raises(WorkerCrashedError) as told:
        Terms(on_phase=phases.append).call(faulty.complain)
    assert str(told.value) == r"KeyError: 'no such bone\nand a second line' during digging"
    assert phases == ["digging"]


@pytest.mark.parametrize(("entry", "arguments", "cause"), [
    ("segfault", (), "SIGSEGV during digging"),
    ("kill_itself", (), "SIGKILL during start-up"),
    ("stop_in_the_middle_of_its_answer", (), "exit code 7 during start-up"),
    ("no_such", (), "AttributeError: module 'tests.support.faulty' has no attribute 'no_such' during start-up"),
    ("add", (1, "2"), "TypeError: unsupported operand type(s) for +: 'int' and 'str' during start-up"),
])  # fmt: skip
def test_death_is_told_by_its_cause(entry: str, arguments: tuple[object, ...], cause: str) -> None:
    with pytest.raises(WorkerCrashedError) as told:
        call(Entry("tests.support.faulty", entry), *arguments)
    assert str(told.value) == cause


@pytest.mark.parametrize("politely", [True, False])
@pytest.mark.parametrize("code", [0, 3])
def test_leaving_without_an_answer_is_a_crash(code: int, politely: bool) -> None:
    with pytest.raises(WorkerCrashedError, match=rf"^exit code {code} during start-up$"):
        call(faulty.leave, code, politely)


def test_hang_is_ended_with_all_its_children(tmp_path: Path) -> None:
    with pytest.raises(WorkerTimeoutError, match=r"^no result within 10 s, during digging$"):
        Terms(timeout_s=10.0).call(faulty.hang, tmp_path / "pids")
    worker, child = map(int, (tmp_path / "pids").read_text().split())
    assert not lives(worker)
    wait_until(lambda: not lives(child), "the end of the worker's child")


def test_call_that_is_interrupted_ends_its_worker(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def interrupt(_: str) -> None:
        wait_until(pids.exists, "the worker's start")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Terms(on_phase=interrupt).call(faulty.hang, pids)
    worker, child = map(int, pids.read_text().split())
    wait_until(lambda: not lives(worker) and not lives(child), "the end of the worker and its child")


def test_output_goes_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    Terms(log=log).call(faulty.shout, "wow")
    Terms(log=log).call(faulty.shout, "wow again")
    with pytest.raises(WorkerCrashedError):
        Terms(log=log).call(faulty.segfault)
    text = log.read_text()
    for words in ("wow\n", "and from C\n", "wow again\n", "Fatal Python error: Segmentation fault", "in segfault"):
        assert words in text
    call(faulty.shout, "nobody hears")
    assert capfd.readouterr() == ("", "")


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerCrashedError, match=r"^its log cannot be written \(FileNotFoundError: .* start-up$"):
        Terms(log=tmp_path / "none" / "log").call(faulty.add, 2, 3)
    assert capfd.readouterr() == ("", "")


def test_temporary_files_of_a_killed_worker_are_gone() -> None:
    phases: list[str] = []
    with pytest.raises(WorkerTimeoutError):
        Terms(timeout_s=10.0, on_phase=phases.append).call(faulty.litter)
    (left,) = phases
    assert Path(left).parent.name.startswith("resbench-worker-")
    assert not Path(left).parent.exists()


def test_worker_replies_until_it_is_dismissed() -> None:
    with Terms().started(faulty.take_turns, 1.5) as worker:
        worker.ready(PATIENCE_S)
        assert [worker.ask(PATIENCE_S, list), worker.ask(PATIENCE_S, list)] == [[1.5], [1.5]]
        worker.dismiss()
        assert worker.answer(PATIENCE_S) == "asked 2 times"


def test_worker_that_dies_of_a_question_is_told() -> None:
    with Terms().started(faulty.take_turns, 0.0) as worker:
        worker.ready(PATIENCE_S)
        with pytest.raises(WorkerCrashedError, match=r"^SIGKILL during start-up$"):
            worker.ask(PATIENCE_S, list)
        worker.dismiss()


def test_worker_that_is_not_dismissed_ends_with_its_context() -> None:
    with Terms().started(faulty.take_turns, 1.0) as worker:
        worker.ready(PATIENCE_S)
        process = worker._process
    assert process.exitcode == -signal.SIGKILL


def test_an_answer_of_another_type_is_a_crash() -> None:
    with pytest.raises(WorkerCrashedError, match=r"faulty:lie returned str, not <class 'int'>"):
        call(faulty.lie)


def test_a_refusal_is_raised_here_in_its_own_words() -> None:
    with pytest.raises(ValueError, match=r"^unknown model 'resnet1': choose from resnet18, ") as refused:
        call(build_model, "resnet1")
    assert is_for_people(refused.value)
    with pytest.raises(WorkerCrashedError, match=r"^ValueError: "):
        call(faulty.misread)


def test_messages_at_the_wrong_time_are_told() -> None:
    waits = pytest.raises(WorkerCrashedError, match="it waits for questions")
    with Terms().started(faulty.take_turns, 1.0) as worker, waits:
        worker.answer(PATIENCE_S)
    with Terms().started(faulty.take_turns, 1.0) as worker:
        worker.ready(PATIENCE_S)
        with pytest.raises(WorkerCrashedError, match="it replied with list, not str"):
            worker.ask(PATIENCE_S, str)
    with Terms().started(faulty.add, 2, 3) as worker, pytest.raises(WorkerCrashedError, match="it ended instead of"):
        worker.ready(PATIENCE_S)


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
    code = "from bench.workers.entry import remote; from bench.workers.parent import call; import sys\n"
    code += "added = call(remote('tests.support.faulty').add, 2, 3)"
    code += "; print(added, 'torch' in sys.modules)"
    assert python(code).communicate()[0] == "5 False\n"


def test_worker_does_not_outlive_its_parent(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    parent = python(
        "from bench.workers.entry import remote; from bench.workers.parent import call; from pathlib import Path; "
        f"call(remote('tests.support.faulty').hang, Path({str(pids)!r}))"
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
