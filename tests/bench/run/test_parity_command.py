"""The command parity over a fake runner."""

import json
from pathlib import Path

import pytest

from bench.terminal.exits import Exit
from bench.types import Case, Status
from bench.types import Result as CaseResult
from bench.workers.parent import Terms
from tests.support.fake_runner import REPORTS, FakeRunner, invoke
from tests.support.synthetic_runs import FAILED, failed, result

pytestmark = pytest.mark.usefixtures("here")


def checked(case: Case) -> CaseResult:
    return failed(case, Status.PARITY_FAILED, "grad:conv1.weight@1", parity=FAILED) if case.path == "compile" else (
        result(case, None)
    )  # fmt: skip


def test_parity_checks_everything_and_keeps_nothing(fake: FakeRunner, here: Path) -> None:
    fake.becomes = lambda case: result(case, None)
    ended = invoke("parity")
    assert ended.exit_code == Exit.VALID
    (plan,) = fake.plans
    assert {case.kind for case in plan.cases} == {"parity"}
    assert {case.precision for case in plan.cases} == {"fp32", "tf32", "bf16", "fp16"}
    assert {(case.model, case.image_size, case.batch_size, case.device) for case in plan.cases} == {
        ("resnet18", 64, 4, "cpu"), ("resnet50", 64, 4, "cpu"),
    }  # fmt: skip
    assert list(here.iterdir()) == []


def test_parity_takes_the_gpu_where_there_is_one(fake: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Terms, "call", lambda *_: True)
    assert invoke("parity", "--precisions", "bf16").exit_code == 0
    assert {(case.device, case.precision) for case in fake.plans[0].cases} == {("cuda", "bf16")}


def test_parity_names_what_diverges(fake: FakeRunner, here: Path) -> None:
    fake.becomes = checked
    ended = invoke(
        "parity", "--paths", "eager,compile", "--modes", "train", "--precisions", "fp32", "--junit", "out/parity.xml"
    )
    assert ended.exit_code == Exit.PARITY_FAILED
    row = next(line for line in ended.stdout.splitlines() if "compile" in line and "layer1.0.conv1" in line)
    for cell in ("parity-failed", "grad:conv1.weight@1", "inf", "0.002", "0.004"):
        assert cell in row
    assert ended.stdout.splitlines()[-1] == "out/parity.xml"
    assert '<failure message="grad:conv1.weight@1"' in (here / "out/parity.xml").read_text()


def test_parity_refuses_an_unwritable_junit_file_before_it_runs(fake: FakeRunner, here: Path) -> None:
    (here / "file").write_text("")
    ended = invoke("parity", "--junit", "file/parity.xml")
    assert (ended.exit_code, fake.plans) == (Exit.USAGE, [])
    assert "cannot write file/parity.xml: " in ended.stderr


def test_parity_keeps_its_run_where_asked(fake: FakeRunner, here: Path) -> None:
    fake.becomes = checked
    ended = invoke("parity", "--out", "kept", "--json", "--paths", "eager,compile")
    said = json.loads(ended.stdout)
    assert {Path(file).name for file in said["files"]} >= REPORTS
    assert {row["parity"] for row in said["rows"]} == {"pass", "fail"}
    assert (here / "kept" / "results.jsonl").is_file()
