"""The command that holds the harness against an independent loop. Whether they agree is no matter for a test."""

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median

import pytest
import torch
from click.testing import CliRunner

from bench.cli import main
from bench.compare import agreement
from bench.types import Case, Mode
from tests.support.synthetic_runs import CASE


@pytest.mark.parametrize(
    ("mode", "precision"), [("infer", "fp32"), pytest.param("train", "bf16", marks=pytest.mark.exhaustive)]
)
def test_tiny_case_end_to_end(tmp_path: Path, mode: str, precision: str) -> None:
    out = tmp_path / "new" / "agreement.json"
    axes = ["--mode", mode, "--precision", precision, "--batch-size", "2", "--image-size", "32", "--device", "cpu"]
    ended = CliRunner().invoke(main, ["agreement", *axes, "--rounds", "2", "--seconds", "0.05", "--out", str(out)])
    found = json.loads(out.read_text())
    assert ended.exit_code == (0 if found["agrees"] else 3), ended.output
    assert found["case"] == f"resnet18-{mode}-{precision}-b2-i32-eager-cpu"
    assert found["harness_images_per_s"] == pytest.approx(2e3 / median(chain(*found["harness_ms"])))
    assert found["independent_images_per_s"] == pytest.approx(2e3 / median(chain(*found["independent_ms"])))
    pairs = zip(found["independent_ms"], found["harness_ms"], strict=True)
    assert found["ratio"] == pytest.approx(median(median(over) / median(under) for over, under in pairs))
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert found["environment"]["device_kind"] == "cpu"
    assert f"ratio {found['ratio']:.3f}" in ended.output


@pytest.mark.parametrize(
    ("harness_ms", "agrees"), [(10.0, True), (10.4, True), (9.6, True), (10.6, False), (9.4, False)]
)
def test_agreement_is_within_five_per_cent_both_ways(harness_ms: float, agrees: bool) -> None:
    case = replace(CASE, device="cpu")
    found = agreement.record(case, [[harness_ms]] * 10, [[10.0]] * 10)
    assert found["agrees"] is agrees
    assert found["ratio"] == pytest.approx(10.0 / harness_ms)


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_independent_step_trains_or_not(mode: Mode) -> None:
    case = Case(model="resnet18", mode=mode, precision="fp32", batch_size=2, image_size=32, path="eager", device="cpu")
    step = agreement.independent_step(case)
    assert step.__closure__ is not None
    closed = dict(zip(step.__code__.co_freevars, step.__closure__, strict=True))
    model = closed["model"].cell_contents
    before = model.fc.weight.detach().clone()
    step()
    step()
    assert torch.equal(model.fc.weight, before) is (mode == "infer")
    assert model.training is (mode == "train")
