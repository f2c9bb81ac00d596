"""Networks with an eighth of their channels: for tests that run whole ones, also where bf16 is emulated."""

from collections.abc import Iterator

import pytest
from torch import nn

import resnet.model
from resnet.depths import DEPTHS, Depth
from resnet.model import ResNet, Version

NARROW18, NARROW17 = "narrow-resnet18", "narrow-resnet17"
DIVISOR = 8


class _Narrow(ResNet):
    def __init__(self, name: str, *, num_classes: int, in_channels: int, version: Version) -> None:
        super().__init__(name, num_classes=num_classes, in_channels=in_channels, version=version)
        stem = self.conv1.out_channels // DIVISOR
        self.conv1 = nn.Conv2d(in_channels, stem, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.fc = nn.Linear(self.fc.in_features // DIVISOR, num_classes)
        self.__class__ = ResNet  # type: ignore[assignment]  # what fuses networks knows them by their type

    def _stage(self, in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
        return super()._stage(in_channels // DIVISOR, channels // DIVISOR, blocks, stride=stride)


@pytest.fixture(scope="module")
def narrow_depth() -> Iterator[None]:
    """Makes the networks known by their names, to all that build models by their names."""

    def make(name: str, *, num_classes: int, in_channels: int, version: Version) -> ResNet:
        kind = _Narrow if name in (NARROW18, NARROW17) else ResNet
        return kind(name, num_classes=num_classes, in_channels=in_channels, version=version)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEPTHS, NARROW18, DEPTHS["resnet18"])
        patch.setitem(DEPTHS, NARROW17, Depth(block="bottleneck", layers=(2, 1, 1, 1)))
        patch.setattr(resnet.model, "ResNet", make)
        yield
