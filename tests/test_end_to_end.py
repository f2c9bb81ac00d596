"""The command as a person runs it: real processes, really killed."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch

from resnet.models.build import build_model
from tests.support.exhaustive import exhaustive
from tests.support.processes import PATIENCE_S, lives, wait_until, workers

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
REPORTS = {"results.csv", "report.md", "environment.json"}
PATHS = ("eager", "channels_last", "folded")
TINY = ("--paths", "eager", "--modes", "infer", "--precisions", "fp32", "--depths", "18", "--image-size", "32")
PRESET = """
summary = "a few seconds a case"
[settings]
confidence = 0.99  # ten samples do: whether a busy machine is steady is not what is tested here
warmup_budget_s = 0.3
sample_minimum_s = 0
sample_budget_s = 60
parity_steps = 1
timeout_s = 300
[[sweep]]
models = ["resnet18"]
modes = ["infer"]
precisions = ["fp32", "bf16"]
batch_sizes = [2]
image_size = 64
paths = ["eager", "channels_last", "folded"]
device = "cpu"
"""

pytestmark = pytest.mark.timeout(4 * PATIENCE_S)  # some tests start several commands


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(PRESET)
    return tmp_path


@contextmanager
def started(here: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command in the background; killed at the end if it still runs."""
    with (here / "output").open("w") as output:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "bench", *arguments],
            cwd=here,
            env=ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def resbench(here: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(  # noqa: S603
        command, cwd=here, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )


def records(directory: Path, kind: str) -> list[dict[str, Any]]:
    """The whole lines of a kind in a journal that may be growing."""
    journal = directory / "results.jsonl"
    whole = journal.read_text().rpartition("\n")[0].splitlines() if journal.exists() else []
    return [record for record in map(json.loads, whole) if record["type"] == kind]


def outcomes(directory: Path) -> list[tuple[str, str]]:
    """Path and status of each result, as they were written."""
    return [(result["case"]["path"], result["status"]) for result in records(directory, "result")]


def test_runner_that_is_killed_is_resumed_without_loss(here: Path) -> None:
    run = here / "run"
    with started(here, "run", "--preset", "tiny.toml", "--out", "run") as runner:
        wait_until(lambda: len(records(run, "result")) >= 1, "the first result")
        second = resbench(here, "run", "--resume", "run")
        assert second.returncode == 2
        assert f"another run (pid {runner.pid}) is writing run" in second.stderr
        wait_until(lambda: len(records(run, "result")) >= 2, "the second result")
        wait_until(lambda: workers(runner.pid), "a worker of the third case")
        orphans = workers(runner.pid)
        runner.kill()
        runner.wait()
    before = records(run, "result")
    assert len(before) < 6, "it was killed in the middle"
    assert {status for _, status in outcomes(run)} == {"valid"}
    wait_until(lambda: not any(map(lives, orphans)), "the end of its workers")

    resumed = resbench(here, "run", "--resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert f"tiny: {6 - len(before)} cases to run, {len(before)} already done" in resumed.stdout
    after = records(run, "result")
    assert after[: len(before)] == before, "nothing lost"
    cells = Counter((str(result["case"]), result["status"]) for result in after)
    assert len(cells) == 6
    assert set(cells.values()) == {1}, "nothing measured twice"
    assert len(records(run, "ceilings")) == 1
    assert {file.name for file in run.iterdir()} >= REPORTS

    table = (run / "results.csv").read_bytes()
    assert table.count(b"\n") == 7
    (run / "results.csv").unlink()
    assert resbench(here, "report", "run").returncode == 0
    assert (run / "results.csv").read_bytes() == table


def test_worker_that_is_killed_costs_one_case(here: Path) -> None:
    run = here / "run"
    with started(here, "run", "--preset", "tiny.toml", "--precisions", "fp32", "--out", "run") as runner:
        log = run / "logs" / "resnet18-infer-fp32-b2-i64-channels_last-cpu.log"
        wait_until(log.exists, "the worker of the second case")
        (worker,) = workers(runner.pid)
        os.kill(worker, signal.SIGKILL)
        assert runner.wait(timeout=PATIENCE_S) == 3
    assert outcomes(run) == [("eager", "valid"), ("channels_last", "crashed"), ("folded", "valid")]
    (crashed,) = (result for result in records(run, "result") if result["status"] == "crashed")
    assert str(crashed["reason"]).startswith("SIGKILL during ")
    assert {file.name for file in run.iterdir()} >= REPORTS
    assert "SIGKILL during " in (run / "report.md").read_text()
    assert [file.name for file in log.parent.iterdir()] == [log.name]


def test_ctrl_c_ends_with_everything_written(here: Path) -> None:
    run = here / "run"
    with started(here, "run", "--preset", "tiny.toml", "--precisions", "fp32", "--out", "run") as runner:
        wait_until(lambda: records(run, "result"), "the first result")
        wait_until(lambda: workers(runner.pid), "the worker of the second case")
        group = workers(runner.pid)
        os.killpg(runner.pid, signal.SIGINT)  # as a terminal does
        assert runner.wait(timeout=PATIENCE_S) == 3
    assert not any(map(lives, group))
    kept = outcomes(run)
    assert kept == [(path, "valid") for path in PATHS[: len(kept)]]
    assert 1 <= len(kept) < 3
    assert [session["interrupted"] for session in records(run, "session")] == ["Ctrl-C"]
    assert {file.name for file in run.iterdir()} >= REPORTS
    output = (here / "output").read_text()
    assert f"{3 - len(kept)} of 3 cases were not run (Ctrl-C):\n" in output
    assert "go on with: python -m bench run --resume run\n" in output
    assert "Traceback" not in output


def test_parity_with_junit(here: Path) -> None:
    ended = resbench(
        here, "parity", *TINY, "--paths", "eager,channels_last", "--junit", "parity.xml", "--device", "cpu"
    )
    assert ended.returncode == 0, ended.stderr
    suite = ET.parse(here / "parity.xml").getroot()  # noqa: S314 - our own
    tests = list(suite.iter("testcase"))
    assert len(tests) == 2
    assert all(not list(test) for test in tests), "no failure, error or skip"
    assert {file.name for file in here.iterdir()} == {"tiny.toml", "parity.xml"}


@pytest.mark.exhaustive
def test_weights_from_a_relative_file(here: Path) -> None:
    """The file is what runs: with one NaN in it parity fails, also where the run is resumed."""
    state = build_model("resnet18").state_dict()
    torch.save(state, here / "r18.pt")
    ended = resbench(
        here, "run", "--preset", "tiny.toml", *TINY, "--batch-size", "2", "--weights", "r18.pt", "--out", "run"
    )
    assert ended.returncode == 0, ended.stderr
    journal = (here / "run" / "results.jsonl").read_text()
    assert records(here / "run", "plan")[0]["settings"]["weights"] == "r18.pt"
    for text in (journal, (here / "run" / "report.md").read_text()):
        assert str(here) not in text

    state["fc.bias"][7] = float("nan")
    torch.save(state, here / "r18.pt")
    ended = resbench(here, "run", "--resume", "run")
    assert ended.returncode == 1, ended.stderr


BAD = {
    "weights that are no state_dict": (("--weights", "list.pt"), ("list.pt", "not a state_dict", "torch.save")),
    "weights of another model": (("--weights", "r34.pt"), ("r34.pt", "do not fit this resnet18")),
    "weights that are not there": (("--weights", "gone.pt"), ("gone.pt", "No such file", "IMAGENET1K_V1")),
    "CUDA that is not there": (("--device", "cuda"), ("torch finds no CUDA device", "--device cpu")),
    "malformed TOML": (("--preset", "torn.toml"), ("torn.toml", "line 2", "models")),
    "corrupt journal": (("--resume", "corrupt"), ("corrupt/results.jsonl", "line 1")),
    "directory that cannot be made": (("--out", "/proc/self/nothing"), ("/proc/self/nothing", "another directory")),
}


CHECKED = ("malformed TOML", "corrupt journal")  # by default: they are refused before anything imports torch


@pytest.mark.parametrize("name", [*CHECKED, *exhaustive(*(name for name in BAD if name not in CHECKED))])
def test_bad_input_is_one_paragraph(here: Path, name: str) -> None:
    arguments, words = BAD[name]
    if torch.cuda.is_available() and "CUDA" in name:
        pytest.skip("there is CUDA here")
    torch.save([1, 2, 3], here / "list.pt")
    torch.save(build_model("resnet34").state_dict(), here / "r34.pt")
    (here / "torn.toml").write_text('summary = "x"\nmodels = [\n')
    (here / "corrupt").mkdir()
    (here / "corrupt" / "results.jsonl").write_text('{"type": "plan"\n{"type": "result"}\n')
    before = {file: file.stat().st_mtime_ns for file in here.rglob("*") if file.is_file()}
    preset = () if {"--preset", "--resume"} & set(arguments) else ("--preset", "tiny.toml")
    out = () if {"--out", "--resume"} & set(arguments) else ("--out", "new")
    ended = resbench(here, "run", *preset, *out, *arguments)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    message = ended.stderr[ended.stderr.index("Error: ") :].strip()
    assert "\n" not in message
    assert "Traceback" not in ended.stderr
    for word in words:
        assert word in message
    after = {file: file.stat().st_mtime_ns for file in here.rglob("*") if file.is_file() and file.name != ".lock"}
    assert after == before, "nothing written"
