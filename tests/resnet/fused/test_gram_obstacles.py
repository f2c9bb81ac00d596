"""Bottleneck blocks that cannot be one node, or not for an input: they are computed layer by layer."""

import warnings

import pytest
import torch
from torch import nn

from kernels.bottleneck.forms import BLOCKS
from kernels.launch.runtime import recorded
from resnet.fused import gram
from resnet.fused.blocks import FusedBottleneck
from resnet.fused.fuse import fuse
from resnet.fused.gram import GramBottleneck
from tests.support.gram_networks import DEVICE, block, network
from tests.support.shallow_programs import relative


@pytest.mark.parametrize(
    ("child", "instead", "reason"),
    [
        ("conv1", nn.Conv2d(32, 8, 1), "its conv1 is not a plain 1x1 convolution"),
        ("conv3", nn.Conv2d(8, 32, 3, padding=1, bias=False), "its conv3 is not a plain 1x1 convolution"),
        ("conv3", nn.Conv2d(8, 32, 1, groups=2, bias=False), "its conv3 is not a plain 1x1 convolution"),
        ("conv1", nn.Conv2d(32, 8, 1, stride=(1, 2), bias=False), "its conv1 is not a plain 1x1 convolution"),
        ("conv2", nn.Conv2d(8, 8, 3, padding=1), "its conv2 has a bias"),
        ("conv2", nn.Conv2d(8, 8, 3, padding="same", bias=False), "its conv2 has a bias, hooks, or padding other than"),
        ("bn2", nn.BatchNorm2d(8, affine=False), "one of its BatchNorms has no parameters"),
    ],
)  # fmt: skip
def test_other_layers_are_fused_one_by_one(child: str, instead: nn.Module, reason: str) -> None:
    model = network()
    setattr(model.get_submodule("layer2.1"), child, instead)
    with pytest.warns(UserWarning, match=rf"fused layer by layer: layer2\.1 \({reason}"):
        fused = fuse(model, gram=True)
    assert type(fused.get_submodule("layer2.1")) is FusedBottleneck
    assert isinstance(fused.get_submodule("layer2.0"), GramBottleneck)


@pytest.mark.parametrize("name", ["conv1", "conv2", "conv3", "bn1", "bn2", "bn3", "downsample.0"])
def test_hooks_set_later_are_called(name: str) -> None:
    of, plain, x = block("layer2.0")
    calls: list[nn.Module] = []
    child = of.get_submodule(name)
    child.register_forward_hook(lambda module, *_: calls.append(module))
    with pytest.warns(UserWarning, match="computed layer by layer: there are hooks"):
        out = of(x)
    assert calls == [child]
    assert relative(out, plain(x)) < 1e-5


def test_a_hook_on_the_block_itself_is_no_obstacle() -> None:
    of, _, x = block()
    calls: list[tuple[int, ...]] = []
    of.register_forward_hook(lambda _module, _inputs, out: calls.append(tuple(out.shape)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of(x)
    assert calls == [(4, 32, 8, 8)]


def test_evaluation_with_gradients_and_mixed_modes_are_computed_layer_by_layer_without_a_word() -> None:
    of, plain, x = block("layer2.0")
    for statistics in (("bn1", "bn2", "bn3", "downsample.1"), ("bn3",)):
        for each in (of, plain):
            each.train()
            for name in statistics:
                each.get_submodule(name).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            out, wanted = of(x), plain(x)
        assert relative(out, wanted) < 1e-5
        gradients = [
            torch.autograd.grad(y.square().sum(), list(each.parameters())) for y, each in ((out, of), (wanted, plain))
        ]
        for found, right in zip(*gradients, strict=True):
            assert relative(found, right) < 1e-4


def test_an_empty_batch_is_what_it_is_for_the_plain_block() -> None:
    of, plain, x = block()
    for each in (of, plain):
        each.eval()
    with torch.no_grad():
        assert of(x[:0]).shape == plain(x[:0]).shape


def test_another_precision_without_autocast_is_refused_as_the_plain_block_does() -> None:
    of, plain, x = block()
    with pytest.raises(RuntimeError):
        plain(x.bfloat16())
    with pytest.raises(RuntimeError), pytest.warns(UserWarning, match="differ in precision"):
        of(x.bfloat16())


def test_fp64_is_computed_layer_by_layer_where_triton_has_no_products_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    of, plain, x = block()
    of, plain, x = of.double(), plain.double(), x.double()
    monkeypatch.setattr(gram, "multiplies", lambda _: False)
    with pytest.warns(UserWarning, match="computed layer by layer: its input is fp64"):
        found = of(x)
    assert relative(found, plain(x)) < 1e-12
    operands = BLOCKS[0].make((2, 16, 4, 4), torch.float64, "meta")
    with recorded("sm_90"), pytest.raises(RuntimeError, match="cannot multiply fp64 matrices here"):
        BLOCKS[0].run(operands, True)


def test_autocast_leaves_fp64_as_it_is() -> None:
    of, plain, x = block()
    of, plain, x = of.double(), plain.double(), x.double()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found, wanted = of(x), plain(x)
    assert found.dtype == wanted.dtype == torch.float64
    assert relative(found, wanted) < 1e-12
