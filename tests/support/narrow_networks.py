"""Networks with an eighth of their channels: for tests that run whole ones, also where bf16 is emulated."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from resnet.folded import fastest
from resnet.models.resnet import ResNet
from resnet.models.table import NETWORKS, Network

NARROW18, NARROW17, NARROW10 = "narrow-resnet18", "narrow-resnet17", "narrow-resnet10"
DIVISOR = 8

_plain_init = ResNet.__init__


class _Narrow(ResNet):
    """What a ResNet is while it is made: what fuses, copies and pickles networks knows them by their type."""

    def _stage(self, in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
        return super()._stage(in_channels // DIVISOR, channels // DIVISOR, blocks, stride=stride)


def _init(self: ResNet, name: str, **options: Any) -> None:  # noqa: ANN401 - those of ResNet
    if name not in (NARROW18, NARROW17, NARROW10):
        _plain_init(self, name, **options)
        return
    self.__class__ = _Narrow
    _plain_init(self, name, **options)
    self.__class__ = ResNet
    stem = self.conv1.out_channels // DIVISOR
    self.conv1 = nn.Conv2d(self.conv1.in_channels, stem, kernel_size=7, stride=2, padding=3, bias=False)
    self.bn1 = nn.BatchNorm2d(stem)
    self.fc = nn.Linear(self.fc.in_features // DIVISOR, self.fc.out_features)


@pytest.fixture(scope="module")
def narrow_depth() -> Iterator[None]:
    """Makes the networks known by their names, to all that build models by their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, NARROW18, replace(NETWORKS["resnet18"], name=NARROW18))
        patch.setitem(NETWORKS, NARROW17, Network(name=NARROW17, block="bottleneck", blocks=(2, 1, 1, 1)))
        patch.setitem(NETWORKS, NARROW10, Network(name=NARROW10, block="basic", blocks=(1, 1, 1, 1)))
        patch.setattr(ResNet, "__init__", _init)
        yield


@pytest.fixture(scope="module")
def quick_choice() -> Iterator[None]:
    """Folded layers time each of their ways once, beside little data of other layers: for what is right by each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastest, "_TRIALS", 1)
        patch.setattr(fastest, "_OTHER_LAYERS", dict.fromkeys(fastest._OTHER_LAYERS, 1 << 10))
        yield
