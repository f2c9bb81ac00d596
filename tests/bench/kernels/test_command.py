"""`resbench kernels` from the command line: how it goes on, how it ends, what it refuses."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from bench.cli import main
from bench.kernels import run as kernel_run
from bench.kernels.report.watch import watching
from bench.kernels.types import KernelRun, Op, Outcome, Request, Survey
from bench.workers.entry import Entry
from bench.workers.errors import WorkerCrashedError, WorkerTimeoutError
from bench.workers.parent import Terms, refuse
from tests.support.processes import PATIENCE_S
from tests.support.repository import ROOT
from tests.support.synthetic_kernels import FAILED, ON_CPU, ON_GPU, OPS, outcome, untimed

Reply = Outcome | BaseException
NAMES = {"report.md", "results.csv", "results.json", "roofline-bf16.svg", "roofline-bf16.png"}


@dataclass
class Workers:
    """In place of `bench.workers.parent`: a survey, and workers that reply with what `reply` makes of the next op."""

    where: Survey | str = ON_GPU
    reply: Callable[[Op], Reply] = outcome
    started: list[tuple[Op, ...]] = field(default_factory=list)  # what each worker was given
    waited: list[float] = field(default_factory=list)

    def call(self, entry: Entry, *_arguments: object) -> Survey:
        assert str(entry) == "bench.kernels.worker:survey"
        if isinstance(self.where, str):
            refuse(self.where)
        return self.where

    @contextmanager
    def start(self, entry: Entry, _where: Survey, pending: tuple[Op, ...]) -> Iterator["Workers"]:
        assert str(entry) == "bench.kernels.worker:serve_ops"
        self.started.append(pending)
        self._left = iter(pending)
        yield self

    def ready(self, _timeout_s: float) -> None:
        pass

    def ask(self, timeout_s: float, of: type[Outcome]) -> Outcome:
        self.waited.append(timeout_s)
        reply = self.reply(next(self._left))
        if isinstance(reply, BaseException):
            raise reply
        assert isinstance(reply, of)
        return reply


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workers:
    """Each test in an empty current directory; pictures, which take longest, are files that hold none."""
    made = Workers()
    monkeypatch.setattr("bench.render.figures.encode", lambda _figure, kind: kind.encode())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Terms, "call", lambda _, entry, *arguments: made.call(entry, *arguments))
    monkeypatch.setattr(Terms, "started", lambda _, entry, *arguments: made.start(entry, *arguments))
    return made


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["kernels", *arguments], prog_name="resbench")


def run(budget_s: float | None = None) -> KernelRun:
    observer = kernel_run.Callbacks(started=lambda _: None, finished=lambda _: None)
    return kernel_run.run(ON_GPU, observer, command="", budget_s=budget_s)


# --- how it goes on ---------------------------------------------------------------------------------------------------


def test_one_worker_does_every_op(workers: Workers) -> None:
    done = run()
    assert [one.op for one in done.outcomes] == list(OPS)
    assert workers.started == [OPS]
    assert (done.pending, done.interrupted) == ((), "")


@pytest.mark.parametrize("error", [WorkerCrashedError("SIGSEGV"), WorkerTimeoutError("no result within 600 s")])
def test_a_worker_that_dies_costs_one_op(workers: Workers, error: Exception) -> None:
    workers.reply = lambda op: error if op == OPS[1] else outcome(op)
    done = run()
    assert [one.failure for one in done.outcomes] == ["", str(error), ""]
    assert workers.started == [OPS, OPS[2:]], "a new worker goes on behind it"


def test_an_answer_that_cannot_be_read_costs_one_op(workers: Workers) -> None:
    workers.reply = lambda op: ModuleNotFoundError("No module named 'gone'") if op == OPS[1] else outcome(op)
    assert [one.failure for one in run().outcomes] == ["", "ModuleNotFoundError: No module named 'gone'", ""]
    assert workers.started == [OPS, OPS[2:]]


def test_the_budget_ends_a_run_between_two_ops_and_within_one(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 70.0, 70.0])
    monkeypatch.setattr(kernel_run, "monotonic", lambda: next(clock))
    done = run(budget_s=60)
    assert (len(done.outcomes), done.interrupted, workers.waited) == (1, "budget", [50.0])

    workers.reply = lambda _: WorkerTimeoutError("no result within 50 s")
    clock = iter([0.0, 10.0, 70.0])
    within = run(budget_s=60)
    assert (within.outcomes, within.interrupted) == ((), "budget"), "the op did not fail: there was no time for it"


def test_ctrl_c_keeps_what_is_measured(workers: Workers) -> None:
    workers.reply = lambda op: outcome(op) if op == OPS[0] else KeyboardInterrupt()
    done = run()
    assert (len(done.outcomes), done.pending, done.interrupted) == (1, OPS[1:], "Ctrl-C")


# --- how it ends ------------------------------------------------------------------------------------------------------


def wrong(op: Op) -> Outcome:
    return Outcome(op=op, check=FAILED)


def broken(op: Op) -> Outcome:
    rows = tuple(replace(row, failures={"compile": "RuntimeError: no"}) for row in outcome(op).rows)
    return replace(outcome(op), rows=rows)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (outcome, 0),
        (untimed, 0),
        (broken, 3),
        (lambda op: wrong(op) if op == OPS[0] else broken(op), 1),
        (lambda op: outcome(op) if op == OPS[0] else KeyboardInterrupt(), 3),
    ],
    ids=["all well", "no GPU", "a contender failed", "parity outweighs failures", "Ctrl-C"],
)
def test_exit_code(workers: Workers, reply: Callable[[Op], Reply], code: int) -> None:
    workers.reply = reply
    assert invoke().exit_code == code


def test_it_writes_a_report_and_says_where(workers: Workers, tmp_path: Path) -> None:
    workers.reply = outcome
    result = invoke("--out", "here")
    assert {file.name for file in tmp_path.glob("here/**/*.*")} == NAMES
    for file in NAMES:
        assert file in result.stdout
    assert "[3/3] parity ok      bn-256x64x56x56-bf16-train  forward fused 4, eager 10, compile 5 ms; backward" in (
        " ".join(result.stdout.split("\n"))
    )
    assert invoke("--out", "here").exit_code == 2, "and never over another"


def test_the_default_directory_is_new_under_reports(workers: Workers, tmp_path: Path) -> None:
    assert workers.where is ON_GPU
    invoke()
    (made,) = (tmp_path / "reports").iterdir()
    assert made.name.startswith("kernels-2")


def test_quiet_prints_the_files_alone_and_json_one_object(workers: Workers) -> None:
    workers.where, workers.reply = ON_CPU, untimed
    lines = invoke("-q", "--out", "quiet").stdout.splitlines()
    assert {Path(line).name for line in lines} == NAMES
    found = json.loads(invoke("--json", "--out", "scripted").stdout)
    assert found["exit_code"] == 0
    assert {Path(name).name for name in found["files"]} == NAMES
    assert len(found["rows"]) == 9
    assert found["rows"][0]["eager_ms"] == pytest.approx(10)
    assert found["rows"][0]["fused_ms"] is None


def test_without_a_gpu_it_says_that_the_fused_kernels_are_not_timed(workers: Workers) -> None:
    workers.where, workers.reply = ON_CPU, untimed
    assert "the fused kernels are not timed: it is interpreted here" in invoke().stdout


def test_progress_names_what_went_wrong() -> None:
    console = Console(width=200, color_system=None)
    with console.capture() as capture, watching(console) as watch:
        watch.begin("3 ops", 3)
        watch.finished(wrong(OPS[0]))
        watch.finished(broken(OPS[1]))
        watch.finished(Outcome(op=OPS[2], failure="SIGSEGV during start-up"))
    text = capture.get()
    assert "parity-failed  stem-256x64x112x112-bf16-train  dx: error 0.5, allowed 0.0078, eager's 0.0019" in text
    assert "compile failed" in text
    assert "failed         bn-256x64x56x56-bf16-train  SIGSEGV during start-up" in text


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--depths", "19"), "unknown depth 19: choose from 18, 34, "),
        (("--dtypes", "fp8"), "unknown dtype fp8: choose from fp32, bf16, fp16"),
        (("--mode", "infer"), "'infer' is not one of 'train', 'eval'"),
        (("--shape", "1,64,1,1"), "'1,64,1,1' is not N,C,H,W with more than one value per channel"),
        (("--shape", "64,56,56"), "write e.g. 256,64,56,56"),
        (("--budget", "soon"), "not a time above zero"),
    ],
)
def test_bad_usage(workers: Workers, arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert workers.started == []


def test_what_the_survey_refuses_is_bad_usage(workers: Workers, tmp_path: Path) -> None:
    workers.where = "unknown form relu: choose from bn"
    result = invoke("--forms", "relu")
    assert result.exit_code == 2
    assert "Error: unknown form relu: choose from bn" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("workers")
def test_options_become_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []

    def survey(request: Request, _: object) -> Survey:
        asked.append(request)
        return ON_GPU

    monkeypatch.setattr(kernel_run, "survey", survey)
    invoke()
    invoke(
        *(
            "--depths",
            "34,18",
            "--shape",
            "8,3,5,7",
            "--shape",
            "1,2,3,4",
            "--forms",
            "bn,stem",
            "--dtypes",
            "fp32,fp16",
        ),
        *("--mode", "eval", "--batch-size", "4", "--image-size", "64", "--device", "cpu", "--out", "other"),
    )
    assert asked == [
        Request(),
        Request(
            device="cpu",
            models=("resnet34", "resnet18"),
            shapes=((8, 3, 5, 7), (1, 2, 3, 4)),
            forms=("bn", "stem"),
            dtypes=("fp32", "fp16"),
            mode="eval",
            batch_size=4,
            image_size=64,
        ),
    ]


# --- in processes of its own ------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU does")
def test_from_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "kernels", "--shape", "2,16,8,8", "--forms", "stem", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(  # noqa: S603
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {Path(name).name for name in found["files"]} == NAMES
    assert [(row["direction"], row["launch"], row["status"], row["parity"]) for row in found["rows"]] == [
        ("forward", "", "valid", "pass"),
        ("forward", "statistics", "not-timed", "pass"),
        ("forward", "pool", "not-timed", "pass"),
        ("backward", "", "valid", "pass"),
        ("backward", "reduce pool", "not-timed", "pass"),
        ("backward", "gradient pool", "not-timed", "pass"),
    ]
    for row in found["rows"]:
        assert row["fused_ms"] is None
        assert (row["eager_ms"] is None) == bool(row["launch"])
    assert "[1/1] parity ok" in done.stderr
