"""The least work of a case, by hand and by the paper."""

import pytest
import torch
from torch import nn

from bench.measure import cost as measure_cost
from bench.measure.cost import activation_bytes, cost
from bench.measure.memory import saved_storages
from bench.types import Mode, Precision
from resnet.models.build import build_model
from resnet.models.table import NETWORKS, Network

# Multiply-adds of one image at 224 px, layer by layer (He et al., 2015, table 1; v1.5): pixels of the output, then
# input channels x output channels x kernel size.
STEM = 112**2 * (3 * 64 * 49)
FORWARD_FLOPS = {
    "resnet18": 2
    * (
        STEM
        + 56**2 * 4 * 64 * 64 * 9
        + 28**2 * (64 * 128 * 9 + 3 * 128 * 128 * 9 + 64 * 128)
        + 14**2 * (128 * 256 * 9 + 3 * 256 * 256 * 9 + 128 * 256)
        + 7**2 * (256 * 512 * 9 + 3 * 512 * 512 * 9 + 256 * 512)
        + 512 * 1000
    ),
    "resnet50": 2
    * (
        STEM
        + 56**2 * (64 * 64 + 2 * 256 * 64 + 3 * (64 * 64 * 9 + 64 * 256) + 64 * 256)
        + 56**2 * 256 * 128
        + 28**2 * (3 * 512 * 128 + 4 * (128 * 128 * 9 + 128 * 512) + 256 * 512)
        + 28**2 * 512 * 256
        + 14**2 * (5 * 1024 * 256 + 6 * (256 * 256 * 9 + 256 * 1024) + 512 * 1024)
        + 14**2 * 1024 * 512
        + 7**2 * (2 * 2048 * 512 + 3 * (512 * 512 * 9 + 512 * 2048) + 1024 * 2048)
        + 2048 * 1000
    ),
}


@pytest.mark.parametrize("model", FORWARD_FLOPS)
def test_forward_flops_are_those_of_the_paper(model: str) -> None:
    assert cost(model, "infer", "fp32", 1, 224).flops == FORWARD_FLOPS[model]


@pytest.mark.parametrize("model", FORWARD_FLOPS)
def test_training_is_three_forwards_but_for_the_gradient_of_the_images(model: str) -> None:
    assert cost(model, "train", "fp32", 1, 224).flops == 3 * FORWARD_FLOPS[model] - 2 * STEM


def test_flops_follow_the_batch_and_not_the_precision() -> None:
    one = cost("resnet18", "train", "fp32", 1, 64).flops
    assert cost("resnet18", "train", "bf16", 7, 64).flops == 7 * one


def stem_and_classifier_bytes(mode: Mode, precision: Precision, batch: int) -> int:
    """`cost` of the network below, written out."""
    width = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}[precision]
    image, features, logits = 3 * 8 * 8, 4 * 8 * 8, 10
    conv, linear = 3 * 4 * 9, 4 * 10 + 10
    forward = image + features + 4 + logits
    backward = features + image + logits + 4 + 4  # gradients of outputs, inputs again, gradient of the pooled input
    if mode == "infer":
        return width * (batch * forward + conv + linear)
    return width * (batch * (forward + backward) + conv + linear) + 24 * (conv + 2 * 4 + linear)


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_bytes_of_a_small_network_by_hand(mode: Mode, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(_: str) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 10),
        )

    monkeypatch.setitem(NETWORKS, "small", Network(name="small", block="basic", blocks=()))
    monkeypatch.setattr(measure_cost, "build_network", small)
    measure_cost._count.cache_clear()
    found = cost("small", mode, precision, 5, 8)
    measure_cost._count.cache_clear()
    assert found.bytes == stem_and_classifier_bytes(mode, precision, 5)
    conv, linear = 2 * 64 * 4 * 3 * 9, 2 * 4 * 10
    assert found.flops == 5 * (conv + linear if mode == "infer" else 2 * conv + 3 * linear)


def test_every_depth_has_a_cost_and_deeper_is_more() -> None:
    costs = [cost(model, "infer", "bf16", 1, 64) for model in NETWORKS]
    assert [c.flops for c in costs] == sorted({c.flops for c in costs})
    weights = sum(parameter.numel() for parameter in build_model("resnet18").parameters())
    assert cost("resnet18", "train", "fp32", 1, 64).bytes > 24 * weights


def test_unknown_model_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="resnet19"):
        cost("resnet19", "infer", "fp32", 1, 64)


@pytest.mark.parametrize("batch", [2, 6])
def test_activation_estimate_is_what_autograd_keeps(batch: int) -> None:
    model = build_model("resnet18")
    images = torch.randn(batch, 3, 64, 64)
    kept = sum(saved.nbytes for saved in saved_storages(lambda: model(images), model))
    assert activation_bytes("resnet18", batch, 64, 4) == pytest.approx(kept, rel=0.05)
    assert activation_bytes("resnet18", batch, 64, 8) == 2 * activation_bytes("resnet18", batch, 64, 4)
