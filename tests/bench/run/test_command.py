"""The command line over a fake runner that keeps a real journal: exit codes, output modes, bad input."""

import json
import os
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench.cli import main
from bench.run.report.watch import Watch
from bench.sweep.presets import load_preset
from bench.terminal.exits import Exit, exit_code
from bench.types import MARKS, Case, Plan, Rounds, Run, Status
from bench.types import Result as CaseResult
from bench.workers.errors import WorkerCrashedError, WorkerError, WorkerTimeoutError
from bench.workers.parent import Terms
from tests.support.fake_runner import CPU, REPORTS, FakeRunner, becomes, invoke
from tests.support.synthetic_runs import FAILED, failed, measurement, result

pytestmark = pytest.mark.usefixtures("here")

# --- exit codes -------------------------------------------------------------------------------------------------------

EXITS = {
    Status.VALID: 0,
    Status.NOT_TIMED: 0,
    Status.UNSUPPORTED: 0,
    Status.PARITY_FAILED: 1,
    Status.UNSTABLE: 0,
    Status.THROTTLED: 0,
    Status.RECOMPILED: 0,
    Status.SHARED_GPU: 0,
    Status.OOM: 3,
    Status.TIMEOUT: 3,
    Status.CRASHED: 3,
}


@pytest.mark.parametrize("status", Status)
def test_exit_code_of_each_status(fake: FakeRunner, status: Status) -> None:
    fake.becomes = result if status is Status.VALID else becomes(status)
    assert invoke(*CPU, "--out", "here").exit_code == EXITS[status]
    assert invoke(*CPU, "--out", "there", "--strict").exit_code == (3 if status in MARKS else EXITS[status])


@pytest.mark.parametrize(("as_planned", "strict", "code"), [(True, False, 0), (True, True, 3), (False, False, 3)])
def test_what_the_preset_s_own_budget_leaves_out_is_no_failure(
    fake: FakeRunner, as_planned: bool, strict: bool, code: int
) -> None:
    fake.becomes = lambda case: result(case) if case.path == "eager" else None
    fake.as_planned = as_planned
    ended = invoke(*CPU, "--out", "here", *(["--strict"] if strict else []))
    assert ended.exit_code == code
    assert "  resnet18 infer fp32, batch 4, 224 px: compile\n" in ended.stdout
    assert invoke("run", "--resume", "here", "--strict").exit_code == 3, "still left out"


@pytest.mark.parametrize(
    ("program", "session", "command"),
    [
        ("/usr/bin/resbench", "", "resbench run"),
        ("/somewhere/bench/__main__.py", "", "python -m bench run"),
        ("/somewhere/bench/__main__.py", "bench", "nox -s bench --"),
        ("/somewhere/bench/__main__.py", "tests", "python -m bench run"),
    ],
)
def test_the_command_that_goes_on_is_the_one_that_the_person_has(
    fake: FakeRunner, monkeypatch: pytest.MonkeyPatch, program: str, session: str, command: str
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setenv("NOX_CURRENT_SESSION", session)
    fake.becomes = lambda _: None
    assert f"go on with: {command} --resume here\n" in invoke(*CPU, "--out", "here").stdout


def test_marked_rows_are_measured_again_on_demand(fake: FakeRunner) -> None:
    fake.becomes = becomes(Status.UNSTABLE)
    invoke(*CPU, "--out", "here")
    assert invoke("run", "--resume", "here", "--again", "marked").exit_code == 0
    assert fake.again == [frozenset(), MARKS]
    ended = invoke(*CPU, "--again", "marked")
    assert (ended.exit_code, "--again needs --resume DIRECTORY" in ended.stderr) == (2, True)


def test_precisions_that_are_named_are_measured_even_where_they_are_emulated(fake: FakeRunner) -> None:
    invoke(*CPU, "--out", "named")
    invoke("run", "--preset", "cpu-quick", "--out", "not named")
    assert [plan.emulated for plan in fake.plans] == [True, False]
    assert [plan.budget_s for plan in fake.plans] == [255.0, 255.0]


def test_failed_parity_outweighs_a_crash(fake: FakeRunner) -> None:
    statuses = {"eager": Status.CRASHED, "compile": Status.PARITY_FAILED}
    fake.becomes = lambda case: failed(case, statuses[case.path], "because")
    assert invoke(*CPU).exit_code == Exit.PARITY_FAILED


def test_interrupted_run_writes_its_reports_and_says_how_to_go_on(fake: FakeRunner, here: Path) -> None:
    fake.becomes = lambda case: result(case) if case.path == "eager" else None
    ended = invoke(*CPU, "--out", "my runs")
    assert ended.exit_code == Exit.FAILED
    assert "1 of 2 cases were not run (Ctrl-C):\n" in ended.stdout
    assert "--resume 'my runs'\n" in ended.stdout
    assert {file.name for file in (here / "my runs").iterdir()} >= REPORTS
    fake.becomes = result
    assert invoke("run", "--resume", "my runs", "--budget", "1h1m1s").exit_code == Exit.VALID
    assert fake.budgets == [None, 3661.0]


def test_a_run_on_cuda_is_not_resumed_without(fake: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Terms, "call", lambda *_: True)
    fake.becomes = lambda case: result(case) if case.path == "eager" else None
    invoke("run", "--preset", "quick", "--out", "here")
    monkeypatch.setattr(Terms, "call", lambda *_: False)
    before = Path("here/results.jsonl").read_bytes()
    ended = invoke("run", "--resume", "here")
    assert ended.exit_code == Exit.USAGE
    assert "the run in here would run on cuda, but torch finds no CUDA device here" in ended.stderr
    assert Path("here/results.jsonl").read_bytes() == before


def test_ctrl_c_outside_the_runner_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Terms, "call", stop)
    ended = invoke("doctor")
    assert (ended.exit_code, ended.stderr) == (Exit.FAILED, "Stopped.\n")


def test_exit_code_of_a_run_without_results() -> None:
    nothing = Run(plan=Plan(name="x", cases=(result().case,), settings=load_preset("cpu").settings))
    assert exit_code(nothing) == Exit.FAILED


# --- what is planned --------------------------------------------------------------------------------------------------


def test_axes_and_settings_reach_the_plan(fake: FakeRunner) -> None:
    axes = ("--depths", "18,50", "--modes", "infer", "--precisions", "fp32", "--batch-sizes", "1,2", "--paths", "eager")
    assert invoke("run", "--preset", "cpu", *axes, "--image-size", "64", "--timeout", "9m").exit_code == 0
    (plan,) = fake.plans
    assert [case.key for case in plan.cases] == [
        f"resnet{depth}-infer-fp32-b{batch}-i64-eager-cpu" for depth in (18, 50) for batch in (1, 2)
    ]
    assert plan.settings == replace(load_preset("cpu").settings, timeout_s=540.0)


@pytest.mark.parametrize("command", [CPU, ("parity", "--paths", "eager")])
def test_weights_reach_the_plan_as_given(fake: FakeRunner, command: tuple[str, ...]) -> None:
    assert invoke(*command, "--out", "random").exit_code == 0
    assert invoke(*command, "--out", "mine", "--weights", "mine/r18.pt").exit_code == 0
    assert [plan.settings.weights for plan in fake.plans] == ["", "mine/r18.pt"]
    assert fake.plans[1].settings == replace(fake.plans[0].settings, weights="mine/r18.pt")


def test_find_max_batch_adds_a_case_per_path(fake: FakeRunner) -> None:
    fake.becomes = lambda case: result(case, None, max_batch_size=64) if case.kind == "max-batch" else result(case)
    ended = invoke(*CPU, "--find-max-batch")
    assert ended.exit_code == 0
    assert "resnet18-infer-fp32-bmax-i224-compile-cpu  largest batch 64" in ended.stdout
    kinds = [(case.path, case.kind) for case in fake.plans[0].cases]
    assert kinds == [("eager", "measure"), ("compile", "measure"), ("eager", "max-batch"), ("compile", "max-batch")]


@pytest.mark.parametrize(("arguments", "cuda", "preset"), [
    ((), False, "cpu-quick"), ((), True, "quick"), (("--device", "cpu"), True, "cpu-quick"),
])  # fmt: skip
def test_default_preset(
    fake: FakeRunner, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], cuda: bool, preset: str
) -> None:
    monkeypatch.setattr(Terms, "call", lambda *_: cuda)
    assert invoke("run", *arguments).exit_code == 0
    assert fake.plans[0].name == preset


def test_default_directory_names_the_preset_and_the_time(fake: FakeRunner, here: Path) -> None:
    assert invoke(*CPU).exit_code == 0
    assert len(fake.plans) == 1
    (made,) = (here / "reports").iterdir()
    assert made.match("cpu-quick-" + "[0-9]" * 8 + "-" + "[0-9]" * 6)


def test_command_is_kept_as_typed(fake: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/resbench", *CPU, "--out", "my run"])
    assert invoke(*CPU, "--out", "my run").exit_code == 0
    assert fake.plans[0].command == f"resbench {' '.join(CPU)} --out 'my run'"


# --- what is printed --------------------------------------------------------------------------------------------------


def test_a_pipe_gets_one_line_a_case_and_no_control_codes(fake: FakeRunner) -> None:
    fake.becomes = becomes(Status.OOM)
    ended = invoke(*CPU, "--out", "here")
    assert "\x1b" not in ended.output
    assert "\r" not in ended.output
    lines = ended.stdout.splitlines()
    assert lines[:3] == [
        "cpu-quick: 2 cases to run",
        "[1/2] valid          resnet18-infer-fp32-b4-i224-eager-cpu  1000.0 img/s, 4.000 ms  (16.5 s)",
        "[2/2] oom            resnet18-infer-fp32-b4-i224-compile-cpu  because  (16.5 s)",
    ]
    assert "harness overhead: 30.0 s of wall time for 20.0 s of warm-up, samples and turns: 1.50 times as long" in lines
    assert lines[lines.index("wrote:") - 1] == f"report: {Path('here/report.md')}"
    assert any(line.startswith("resnet18 inference, batch 4: eager in fp32 is fastest at ") for line in lines)
    files = lines[lines.index("wrote:") + 1 :]
    assert {Path(file).name for file in files} >= REPORTS
    assert all(Path(file).is_file() for file in files)


def test_a_case_that_failed_parity_shows_no_speed(fake: FakeRunner) -> None:
    fake.becomes = lambda case: result(case, status=Status.PARITY_FAILED, reason="wrong", parity=FAILED)
    assert "img/s," not in invoke(*CPU).stdout


def test_quiet_prints_the_files_alone(fake: FakeRunner) -> None:
    assert len(fake.plans) == 0
    ended = invoke(*CPU, "--out", "here", "-q")
    files = ended.stdout.splitlines()
    assert ended.stderr == ""
    assert files[0] == os.path.join("here", "results.jsonl")  # noqa: PTH118 - as printed
    assert all(Path(file).is_file() for file in files)


@pytest.mark.parametrize("quiet", [False, True])
def test_json_is_one_object_on_stdout(fake: FakeRunner, quiet: bool) -> None:
    fake.becomes = becomes(Status.CRASHED)
    ended = invoke(*CPU, "--out", "here", "--json", *(["--quiet"] if quiet else []))
    said = json.loads(ended.stdout, parse_constant=pytest.fail)
    assert set(said) == {"rows", "files", "exit_code"}
    assert said["exit_code"] == ended.exit_code == Exit.FAILED
    eager, compiled = said["rows"]
    assert (eager["path"], eager["images_per_s"], eager["batch_size"]) == ("eager", pytest.approx(1000.0), 4)
    assert (compiled["status"], compiled["images_per_s"]) == ("crashed", None)
    assert {Path(file).name for file in said["files"]} >= REPORTS
    assert ("cases to run" in ended.stderr) is not quiet


def test_json_has_no_bare_infinity(fake: FakeRunner) -> None:
    """A path that is slower than eager never pays for its compilation."""

    def slower(case: Case) -> CaseResult:
        turns: dict[str, Rounds] = {replace(case, path="eager").key: ((4.0,),), case.key: ((8.0,),)}
        return result(case, measurement=measurement(8.0, turns=turns))

    fake.becomes = slower
    said = json.loads(invoke(*CPU, "--json").stdout, parse_constant=pytest.fail)
    assert said["rows"][1]["compile_break_even_steps"] == "Infinity"


def test_a_terminal_sees_case_phase_and_time_left() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=160)
    done = result()
    with Watch(console) as watch:
        watch.started(Plan(name="mine", cases=(done.case,), settings=load_preset("cpu").settings), 1)
        watch.case_started(done.case, 1)
        watch.phase(done.case, "warm-up")
        watch.refresh()
        watch.case_finished(done)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("eager: warm-up", "0/1", "0:00:00", "left", "2000.0 img/s", "resnet18 · infer · fp32 · batch 8"):
        assert word in shown


# --- bad input --------------------------------------------------------------------------------------------------------

BAD = {
    "unknown path": (("--paths", "eager,warp"), ("warp", "channels_last")),
    "unknown model": (("--depths", "19"), ("19", "152")),
    "depth that is no number": (("--depths", "big"), ("big", "18,50")),
    "unknown precision": (("--precisions", "fp8"), ("fp8", "bf16")),
    "unknown mode": (("--modes", "tune"), ("tune", "infer")),
    "unknown preset": (("--preset", "huge"), ("huge", "cpu-quick")),
    "missing preset file": (("--preset", "mine.toml"), ("mine.toml", "No such file")),
    "zero batch": (("--batch-sizes", "8,0"), ("0", "from 1")),
    "negative batch": (("--batch-sizes", "-4"), ("-4", "from 1")),
    "empty item": (("--paths", "eager,,folded"), ("eager,,folded", "commas")),
    "image size": (("--image-size", "0"), ("0", "from 1")),
    "no time": (("--budget", "soon"), ("soon", "8m")),
    "unknown device": (("--device", "tpu"), ("tpu", "cuda")),
    "no case left": (("--paths", "-eager"), ("no case", "cpu-quick")),
    "cuda without CUDA": (("--device", "cuda"), ("cuda", "--device cpu")),
    "CUDA preset without CUDA": (("--preset", "quick"), ("quick", "--device cpu")),
    "directory of a run": (("--out", "used"), ("used", "not empty", "--resume")),
    "a file as directory": (("--out", "file"), ("file",)),
    "directory below a file": (("--out", "file/below"), ("file/below", "another directory")),
    "malformed TOML": (("--preset", "torn.toml"), ("torn.toml", "line 2", "models")),
    "wrong type in TOML": (("--preset", "typed.toml"), ("typed.toml", "line 3", "models")),
    "nothing to resume": (("--resume", "used"), ("used", "nothing to resume")),
    "resume elsewhere": (("--resume", "missing"), ("missing",)),
    "corrupt journal": (("--resume", "corrupt"), ("corrupt", "line 1")),
    "resume with axes": (("--resume", "used", "--paths", "eager", "--out", "new"), ("--out", "--paths", "journal")),
    "resume with weights": (("--resume", "used", "--weights", "DEFAULT"), ("--weights", "journal")),
}  # fmt: skip


def contents(here: Path) -> dict[Path, bytes]:
    """Every file but the locks, which hold nothing that anybody measured."""
    return {path: path.read_bytes() for path in here.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_paragraph(fake: FakeRunner, here: Path, name: str) -> None:
    (here / "used").mkdir()
    (here / "used" / "keep").write_text("precious")
    (here / "file").write_text("precious")
    (here / "corrupt").mkdir()
    (here / "corrupt" / "results.jsonl").write_text('{"type": "plan"\n{"type": "result"}\n')
    (here / "torn.toml").write_text('summary = "x"\nmodels = [\n')
    (here / "typed.toml").write_text('summary = "x"\n[[sweep]]\nmodels = "all"\nmodes = ["infer"]\n')
    before = contents(here)
    arguments, named = BAD[name]
    ended = invoke("run", *(() if "--preset" in arguments or "--resume" in arguments else CPU[1:3]), *arguments)
    assert ended.exit_code == Exit.USAGE, ended.output
    assert isinstance(ended.exception, SystemExit)
    assert ended.stdout == ""
    message = ended.stderr[ended.stderr.index("Error: ") :]
    assert "\n" not in message.strip()
    for word in named:
        assert word in message
    assert fake.plans == []
    assert contents(here) == before


def test_unwritable_directory(fake: FakeRunner, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere, so that modes prove nothing
    ended = invoke(*CPU, "--out", "here")
    assert ended.exit_code == Exit.USAGE
    assert "cannot write to here: Permission denied" in ended.stderr
    assert fake.plans == []
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("command", ["doctor", "run", "parity"])
@pytest.mark.parametrize("error", [WorkerCrashedError, WorkerTimeoutError])
def test_torch_that_does_not_work_is_told(
    monkeypatch: pytest.MonkeyPatch, here: Path, command: str, error: type[WorkerError]
) -> None:
    def crash(*_: object) -> None:
        raise error("ImportError: no torch during start-up")

    monkeypatch.setattr(Terms, "call", crash)
    ended = invoke(command)
    assert ended.exit_code == Exit.FAILED
    assert ended.stderr.startswith("Error: torch does not work here: ImportError: no torch")
    assert len(ended.stderr.splitlines()) == 1
    assert list(here.iterdir()) == []


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_shows_examples_and_exit_codes(command: str) -> None:
    ended = invoke(command, "--help")
    assert ended.exit_code == 0
    assert f"Examples:\n    resbench {command}" in ended.stdout
    exits = [code for code in Exit if f"\n    {code:d}  " in ended.stdout]
    judges = command in ("run", "parity", "kernels", "audit")
    assert exits == [code for code in Exit if judges or code is not Exit.PARITY_FAILED]
