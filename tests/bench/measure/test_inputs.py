from copy import deepcopy
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor, nn

from bench.measure.inputs import make_model
from bench.parity.errors import relative_error
from resnet.models.build import build_model
from resnet.models.resnet import ResNet
from resnet.paths import PATHS_BY_NAME
from resnet.program import Program
from tests.support.exhaustive import exhaustive
from tests.support.inputs import batch, reference_model

MODELS = ("resnet18", "resnet50")


@pytest.fixture(scope="module", params=[MODELS[0], *exhaustive(*MODELS[1:])])
def model(request: pytest.FixtureRequest) -> ResNet:
    return reference_model(request.param, 0)


def norms(model: ResNet) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_one_seed_makes_one_model_whatever_was_drawn_before() -> None:
    first = make_model("resnet18", 3).state_dict()
    torch.manual_seed(99)
    torch.randn(5)
    second = make_model("resnet18", 3).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_makes_another_model() -> None:
    first, second = (make_model("resnet18", seed).state_dict() for seed in (3, 4))
    same = [name for name in first if torch.equal(first[name], second[name])]
    assert all(name.endswith("num_batches_tracked") for name in same)


def test_no_parameter_of_a_norm_is_trivial(model: ResNet) -> None:
    for norm in norms(model):
        for tensor, trivial in (
            (norm.weight, 1.0),
            (norm.bias, 0.0),
            (norm.running_mean, 0.0),
            (norm.running_var, 1.0),
        ):
            assert tensor is not None
            assert tensor.isfinite().all()
            assert (tensor - trivial).abs().mean() > 1e-4
            assert len(set(tensor.tolist())) > 0.9 * tensor.numel()  # channels that are alike could be swapped unseen


def test_the_settings_of_the_norms_are_those_of_the_reference(model: ResNet) -> None:
    plain = norms(build_model(model.name))
    assert [(norm.eps, norm.momentum) for norm in norms(model)] == [(norm.eps, norm.momentum) for norm in plain]


def test_running_statistics_are_near_a_batchs_own_and_differ_from_them(model: ResNet) -> None:
    """Near: what comes out in inference is of a sane size. Different: one cannot stand for the other."""
    images, _ = batch(4, 64, 1)
    with torch.inference_mode():
        inference, training = model.eval()(images), model.train()(images)
    assert inference.isfinite().all()
    difference = float((inference - training).norm() / training.norm())
    assert 0.05 < difference < 0.5


def test_eps_is_felt(model: ResNet) -> None:
    images, _ = batch(2, 64, 1)
    model.eval()
    with torch.inference_mode():
        right = model(images)
        for norm in norms(model):
            norm.eps = 1e-3
        wrong = model(images)
        for norm in norms(model):
            norm.eps = 1e-5
        assert torch.equal(model(images), right)
    assert float((wrong - right).norm() / right.norm()) > 0.02


def median_gradient_error(model: ResNet) -> float:
    """Of one eager bf16 training step against fp64."""
    images, labels = batch(4, 64, 1)
    gradients = []
    for precision in ("bf16", "fp64"):
        program = Program(PATHS_BY_NAME["eager"], deepcopy(model), mode="train", precision=precision, device="cpu")
        program.step(program.place(images), labels)
        gradients.append(program.gradients())
    found, wanted = gradients
    return median(relative_error(found[name], ref) for name, ref in wanted.items() if ref is not None)


def test_gradients_measure_little_noise(model: ResNet) -> None:
    """With beta at zero most values before a ReLU are near it, and rounding decides which pass."""
    near_zero = deepcopy(model)
    with torch.no_grad():
        for norm in norms(near_zero):
            norm.bias.zero_()
    error, noisy_error = median_gradient_error(model), median_gradient_error(near_zero)
    assert 0 < error < {"resnet18": 0.8, "resnet50": 0.5}[model.name] * noisy_error


@pytest.mark.parametrize("content", ["weights", "checkpoint"])
def test_weights_come_from_a_file(content: str, tmp_path: Path) -> None:
    saved = make_model("resnet18", 5).state_dict()
    torch.save(saved if content == "weights" else {"state_dict": saved}, tmp_path / "weights.pt")
    if content == "checkpoint":
        with pytest.raises(ValueError, match=r"weights\.pt"):
            make_model("resnet18", 0, str(tmp_path / "weights.pt"))
        return
    loaded = make_model("resnet18", 0, str(tmp_path / "weights.pt")).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in saved.items())


def test_weights_of_another_depth_are_refused(tmp_path: Path) -> None:
    torch.save(make_model("resnet18", 5).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt"):
        make_model("resnet34", 0, str(tmp_path / "weights.pt"))


def test_one_seed_makes_one_batch_and_another_another() -> None:
    torch.manual_seed(1)
    first = batch(4, 32, 0)
    torch.manual_seed(2)
    again, other = batch(4, 32, 0), batch(4, 32, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_images_are_standard_normal_and_exact_in_every_precision() -> None:
    images, labels = batch(8, 64, 0)
    assert images.shape == (8, 3, 64, 64)
    assert images.dtype == torch.float32
    assert float(images.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(images.std()) == pytest.approx(1.0, abs=0.02)
    for dtype in (torch.bfloat16, torch.float64):
        assert torch.equal(images.to(dtype).float(), images)
    assert tf32(images).equal(images)
    assert labels.shape == (8,)
    assert labels.dtype == torch.int64
    assert ((labels >= 0) & (labels < 1000)).all()
    assert len(set(labels.tolist())) > 1


def tf32(x: Tensor) -> Tensor:
    """The 13 lowest of 23 bits of the mantissa cut off."""
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)
