"""What the command doctor tells."""

import json
from dataclasses import asdict

import pytest

from bench.machine.types import Examined
from bench.workers.parent import Terms
from tests.support.fake_runner import invoke
from tests.support.synthetic_runs import CEILINGS


def test_doctor_says_what_runs_and_why_not_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {
        "fp32": {},
        "tf32": {"untimed": "interpreted"},
        "bf16": {"emulated": "is emulated"},
        "fp16": {"reason": "needs a better CPU"},
    }
    nothing = {"path": "eager", "mode": "infer", "reason": "", "untimed": "", "emulated": ""}
    cells = [{**nothing, "precision": name, **reason} for name, reason in reasons.items()]
    found = Examined(device="cpu", facts={"cores": "2"}, ceilings=CEILINGS, reaches="a large copy 4 GB/s", cells=cells)
    monkeypatch.setattr(Terms, "call", lambda _, entry: {"bench.machine.doctor:examine": [found]}[str(entry)])
    words = [line.split() for line in invoke("doctor").stdout.splitlines()]
    assert ["cores", "2"] in words
    assert ["eager", "infer", "yes", "parity", "only", "(1)", "emulated", "(2)", "no", "(3)"] in words
    assert ["(1)", "interpreted"] in words
    assert ["(2)", "is", "emulated"] in words
    assert ["(3)", "needs", "a", "better", "CPU"] in words
    assert ["Measured", "now:", "a", "large", "copy", "4", "GB/s."] in words
    assert json.loads(invoke("doctor", "--json").stdout) == [asdict(found)]
