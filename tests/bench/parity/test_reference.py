from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.measure import cost, memory
from bench.measure.inputs import make_model
from bench.parity import locate, reference, trajectory
from bench.parity.locate import first_diverging_layer
from bench.types import Case, Ceilings, Mode, Precision, Settings
from resnet.models.resnet import ResNet
from resnet.program import Program
from tests.support.narrow_networks import NARROW18
from tests.support.other_programs import other_program

SETTINGS = Settings(parity_steps=1)
RATE = 1e12  # FLOP/s of fp64 products
RATES = Ceilings(copy_bytes_per_s=1e10, matmul_flops_per_s={"fp64": RATE})

pytestmark = pytest.mark.usefixtures("narrow_depth", "quick_choice")


def case(**changes: object) -> Case:
    cell = {
        "model": NARROW18,
        "mode": "infer",
        "precision": "fp32",
        "batch_size": 4,
        "image_size": 64,
        "path": "channels_last",
        "device": "cpu",
    }
    return Case(**{**cell, **changes})  # type: ignore[arg-type]


# The reference.


def test_precisions_share_the_trajectories_in_fp64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[str] = []
    original = trajectory.save_reference

    def save(program: Program, state: dict[str, torch.Tensor], inputs: trajectory.Batches, file: Path) -> None:
        assert program.precision == "fp64"
        saved.append(file.name)
        original(program, state, inputs, file)

    monkeypatch.setattr(trajectory, "save_reference", save)
    cell = case(batch_size=2, image_size=32)
    fp32 = reference.prepare(cell, SETTINGS, RATES, tmp_path)
    assert len(saved) == len(set(saved)) == reference.CHECKS
    bf16 = reference.prepare(replace(cell, precision="bf16", path="folded"), SETTINGS, RATES, tmp_path)
    assert bf16.files == fp32.files
    assert len(saved) == reference.CHECKS
    for check in range(reference.CHECKS):
        assert fp32.eager_errors[check]["output@1"] < 1e-5 < bf16.eager_errors[check]["output@1"]
    train = reference.prepare(replace(cell, mode="train"), SETTINGS, RATES, tmp_path)
    assert set(train.files).isdisjoint(fp32.files)


def test_a_trajectory_half_written_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker that writes it may be killed; the cell's other precisions look for the same file."""

    def die(*arguments: object) -> None:
        assert isinstance(arguments[-1], Path)
        arguments[-1].write_bytes(b"PK")
        raise KeyboardInterrupt

    cell = case(batch_size=2, image_size=32)
    with monkeypatch.context() as patched:
        patched.setattr(trajectory, "save_reference", die)
        with pytest.raises(KeyboardInterrupt):
            reference.prepare(cell, SETTINGS, RATES, tmp_path)
    assert list(tmp_path.iterdir())
    made = reference.prepare(cell, SETTINGS, RATES, tmp_path)
    assert made.eager_errors[0]["output@1"] < 1e-5


def test_what_is_saved_is_the_plain_model_in_fp64(tmp_path: Path) -> None:
    cell = case(batch_size=2, image_size=32)
    settings = replace(SETTINGS, parity_steps=2)
    made = reference.prepare(cell, settings, RATES, tmp_path)
    model = make_model(cell.model, SETTINGS.seed).double().eval()
    for check, file in enumerate(made.files):
        tensors = torch.load(file, weights_only=True)
        for number, (images, _) in enumerate(reference.inputs(cell, settings, 2, check), start=1):
            with torch.inference_mode():
                assert torch.equal(tensors[f"output@{number}"], model(images.double()))
        assert len(tensors) == 2


def seconds(batch_size: int) -> float:
    flops = cost.cost(NARROW18, "infer", "fp32", batch_size, 64).flops
    return flops * SETTINGS.parity_steps * reference.CHECKS / (RATE * reference._REFERENCE_EFFICIENCY)


def test_the_timed_batch_is_checked_where_it_fits(tmp_path: Path) -> None:
    settings = replace(SETTINGS, parity_budget_s=1.01 * seconds(4))
    made = reference.prepare(case(), settings, RATES, tmp_path)
    assert (made.batch_size, made.note) == (4, "")


@pytest.mark.parametrize(("share", "batch_size"), [(1.01, 2), (0.99, 1), (0.0, 1)])
def test_the_batch_is_halved_until_the_time_suffices(share: float, batch_size: int, tmp_path: Path) -> None:
    made = reference.prepare(case(), replace(SETTINGS, parity_budget_s=share * seconds(2)), RATES, tmp_path)
    assert made.batch_size == batch_size
    assert f"at batch {batch_size}" in made.note
    assert "at batch 4" in made.note
    assert torch.load(made.files[0], weights_only=True)["output@1"].shape[0] == batch_size


@pytest.mark.parametrize(("precision", "batch_size"), [("fp32", 4), ("bf16", 1)])
def test_the_time_of_an_emulated_precision_counts(precision: Precision, batch_size: int) -> None:
    """Four images in fp64 fit the time, and in bf16, at a quarter of its rate, one does."""
    rates = replace(RATES, matmul_flops_per_s={"fp64": RATE, "fp32": 8 * RATE, "bf16": RATE / 4})
    settings = replace(SETTINGS, parity_budget_s=1.01 * seconds(4))
    assert reference._affordable_batch(case(precision=precision), settings, rates) == batch_size


@pytest.mark.parametrize(("mode", "share"), [("train", 1.3), ("infer", 0.25)])
def test_the_batch_is_halved_until_the_memory_suffices(
    mode: Mode, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = share * cost.activation_bytes(NARROW18, 2, 64, 8)
    monkeypatch.setattr(memory, "free_bytes", lambda _: needed / reference._USABLE_MEMORY * 1.01)
    made = reference.prepare(case(mode=mode), SETTINGS, RATES, tmp_path)
    assert made.batch_size == 2
    assert made.note


def test_the_batch_is_halved_when_memory_runs_out_after_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = trajectory.save_reference

    def save(program: Program, state: dict[str, torch.Tensor], inputs: trajectory.Batches, file: Path) -> None:
        batches = list(inputs)
        if len(batches[0][0]) > 1:
            raise torch.OutOfMemoryError("out of memory")
        original(program, state, iter(batches), file)

    monkeypatch.setattr(trajectory, "save_reference", save)
    made = reference.prepare(case(), SETTINGS, RATES, tmp_path)
    assert made.batch_size == 1
    assert made.note
    assert sorted(map(str, tmp_path.iterdir())) == sorted(made.files)


def test_no_batch_at_all_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(trajectory, "save_reference", save)
    with pytest.raises(torch.OutOfMemoryError):
        reference.prepare(case(), SETTINGS, RATES, tmp_path)


# Where it began.


def wrong(layer: str, model: ResNet) -> None:
    module = model.get_submodule(layer)
    if isinstance(module, nn.BatchNorm2d):
        module.eps = 0.1
    else:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        with torch.no_grad():
            module.weight.mul_(1.5)


@pytest.mark.parametrize(
    ("path", "precision", "mutated", "named"),
    [
        ("channels_last", "fp32", "bn1", "maxpool"),  # of the stem, what comes out is compared
        ("channels_last", "fp32", "layer1.0.bn1", "layer1.0"),
        ("channels_last", "bf16", "layer3.0.downsample.1", "layer3.0"),
        ("channels_last", "fp32", "fc", "fc"),
        ("triton", "fp32", "bn1", "layer1.0"),  # its stem pools in bn1
        ("triton", "fp32", "layer2.0.bn2", "layer2.0"),
        ("folded", "fp32", "bn1", "maxpool"),
        ("folded", "bf16", "layer4.1.conv2", "layer4.1"),
        ("folded", "fp32", "fc", "fc"),
    ],
)
def test_the_first_wrong_layer_is_named(
    path: str, precision: str, mutated: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the candidate is mutated: eager and the reference make their programs elsewhere."""
    monkeypatch.setattr(locate, "make_program", partial(other_program, edit=partial(wrong, mutated)))
    cell = case(path=path, precision=precision, batch_size=2)
    assert first_diverging_layer(cell, SETTINGS, 2) == named


def test_the_first_wrong_layer_is_named_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "make_program", partial(other_program, edit=partial(wrong, "layer2.1.bn2")))
    assert first_diverging_layer(case(mode="train"), SETTINGS, 4) == "layer2.1"


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("eager", "train"),
        ("channels_last", "infer"),
        pytest.param("triton", "train", marks=pytest.mark.exhaustive),
        pytest.param("folded", "infer", marks=pytest.mark.exhaustive),
    ],
)
def test_no_layer_is_named_where_none_is_wrong(path: str, mode: Mode) -> None:
    assert first_diverging_layer(case(path=path, mode=mode), SETTINGS, 4) == ""
