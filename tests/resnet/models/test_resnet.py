"""The reference against torchvision, its oracle: equal bit for bit, not merely close."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from resnet.models.build import build_model
from resnet.models.resnet import BasicBlock, Bottleneck, ResNet, Version
from resnet.models.table import NETWORKS
from tests.support.exhaustive import exhaustive

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def oracle(name: str, *, num_classes: int = 1000, zero_init_residual: bool = False) -> Any:  # noqa: ANN401 - untyped
    return getattr(models, name)(weights=None, num_classes=num_classes, zero_init_residual=zero_init_residual)


def shake(model: nn.Module) -> None:
    """Replace every scale of 1, shift of 0 and fresh statistic by a random value, so that none hides an error.

    Scales stay below 1: in eval mode nothing else keeps the activations of 152 layers in range.
    """
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            assert module.num_batches_tracked is not None
            with torch.no_grad():
                module.weight.uniform_(0.4, 0.6, generator=generator)
                module.bias.uniform_(-0.1, 0.1, generator=generator)
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
            module.running_var.uniform_(0.9, 1.1, generator=generator)
            module.num_batches_tracked.fill_(11)


def step(model: nn.Module) -> dict[str, Tensor]:
    """One forward and backward pass: the loss, the logits, every gradient and every buffer afterwards."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(2, 3, 48, 48, generator=generator, requires_grad=True)
    logits = model(images)
    loss = functional.cross_entropy(logits, torch.tensor([1, 4]))
    torch.autograd.backward(loss)
    assert images.grad is not None
    tensors = {"images.grad": images.grad, "logits": logits.detach(), "loss": loss.detach()}
    tensors |= {f"grad:{key}": value.grad for key, value in model.named_parameters() if value.grad is not None}
    return tensors | {f"buffer:{key}": value.clone() for key, value in model.named_buffers()}


def differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    """Keys, in order, whose tensors are not equal bit for bit; the two must have the same keys in the same order."""
    assert list(ours) == list(theirs)
    return [key for key in ours if not torch.equal(ours[key], theirs[key])]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", *exhaustive("resnet34", "resnet101", "resnet152")])
def test_every_tensor_equals_torchvision(name: str, training: bool) -> None:
    ours = build_model(name)
    shake(ours)
    state = {key: value.clone() for key, value in ours.state_dict().items()}
    with torch.device("meta"):
        theirs = oracle(name)
    theirs.load_state_dict(state, strict=True, assign=True)
    ours_tensors, theirs_tensors = step(ours.train(training)), step(theirs.train(training))
    assert differing(ours_tensors, theirs_tensors) == []
    gradients = [value for key, value in ours_tensors.items() if key.startswith("grad:")]
    assert len(gradients) == len(list(theirs.parameters()))
    assert all(value.isfinite().all() and value.any() for value in gradients)
    counts = {int(value) for key, value in ours_tensors.items() if key.endswith("num_batches_tracked")}
    assert counts == ({12} if training else {11})


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_is_torchvisions_and_loads_both_ways(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build_model(name), oracle(name)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert list(shapes.items()) == [(key, value.shape) for key, value in theirs.state_dict().items()]
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    assert sum(parameter.numel() for parameter in ours.parameters()) == PARAMETERS[name]
    assert [key for key, _ in ours.named_parameters()] == [key for key, _ in theirs.named_parameters()]
    ours_children = [(key, type(child).__name__) for key, child in ours.named_children()]
    assert ours_children == [(key, type(child).__name__) for key, child in theirs.named_children()]


@pytest.mark.parametrize("zero_init", [True, *exhaustive(False)])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_one_seed_gives_torchvisions_weights(name: str, zero_init: bool) -> None:
    torch.manual_seed(7)
    ours = build_model(name, zero_init_last_bn=zero_init)
    ours_next = torch.rand(4)
    torch.manual_seed(7)
    theirs = oracle(name, zero_init_residual=zero_init)
    assert torch.equal(ours_next, torch.rand(4))  # as many random numbers were drawn
    assert differing(ours.state_dict(), theirs.state_dict()) == []


@pytest.mark.parametrize(("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_makes_every_block_start_as_its_shortcut(name: str, last: str) -> None:
    model = build_model(name, zero_init_last_bn=True)
    zero = [key for key, value in model.named_parameters() if key.endswith("weight") and not value.any()]
    blocks = [key for key, module in model.named_modules() if isinstance(module, BasicBlock | Bottleneck)]
    assert zero == [f"{block}.{last}.weight" for block in blocks]
    x = torch.rand(1, 64 if name == "resnet18" else 256, 8, 8)
    assert torch.equal(model.layer1[1](x), x)


def test_classes_and_input_channels() -> None:
    ours = build_model("resnet18", num_classes=7, in_channels=5)
    assert ours.conv1.weight.shape == (64, 5, 7, 7)
    assert ours.fc.weight.shape == (7, 512)
    images = torch.randn(2, 5, 32, 32)
    logits = ours.eval()(images)
    assert logits.shape == (2, 7)
    theirs = oracle("resnet18", num_classes=7)
    theirs.conv1 = nn.Conv2d(5, 64, kernel_size=7, stride=2, padding=3, bias=False)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(logits, theirs.eval()(images))


def strides(model: ResNet) -> list[tuple[int, int]]:
    """Strides of conv1 and conv2 of every bottleneck that halves its input."""
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    pairs = [(block.conv1.stride[0], block.conv2.stride[0]) for block in blocks]
    return [pair for pair in pairs if pair != (1, 1)]


def test_v1_has_its_stride_in_the_first_convolution_of_a_bottleneck() -> None:
    assert strides(build_model("resnet50")) == [(1, 2)] * 3
    v1 = build_model("resnet50", version="v1")
    assert strides(v1) == [(2, 1)] * 3
    theirs = oracle("resnet50")
    theirs.load_state_dict(v1.state_dict(), strict=True)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert not torch.equal(v1(images), theirs(images))

    theirs.load_state_dict(v1.state_dict(), strict=True)
    for block in (theirs.layer2[0], theirs.layer3[0], theirs.layer4[0]):  # torchvision's network is v1 with this
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    assert differing(step(v1), step(theirs)) == []


def test_v1_changes_nothing_for_basic_blocks() -> None:
    v1, theirs = build_model("resnet18", version="v1"), oracle("resnet18")
    theirs.load_state_dict(v1.state_dict(), strict=True)
    assert differing(step(v1), step(theirs)) == []


@pytest.mark.parametrize("name", ["resnet20", "ResNet50", "", "wide_resnet50_2"])
def test_unknown_name_lists_the_allowed(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown model '{name}': choose from {', '.join(NETWORKS)}$"):
        build_model(name)


@pytest.mark.parametrize("argument", ["num_classes", "in_channels"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_must_be_positive(argument: str, value: int) -> None:
    options: dict[str, Any] = {argument: value}
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, not {value}"):
        build_model("resnet18", **options)


def test_unknown_version() -> None:
    version: Any = "v2"
    with pytest.raises(ValueError, match=re.escape("unknown version 'v2': choose from v1, v1.5")):
        build_model("resnet18", version=version)


@pytest.mark.parametrize("version", ["v1", "v1.5"])
def test_the_model_knows_what_it_is(version: Version) -> None:
    with torch.device("meta"):
        model = build_model("resnet101", version=version)
    assert (model.name, model.version, model.training) == ("resnet101", version, True)
