"""A small network that is no reference ResNet: three stages, ten classes, one channel, images of 20x24, no pooling.

`tests.support.known_network` makes it known by its name.
"""

import torch
from torch import Tensor, nn

from resnet.models.resnet import BasicBlock
from resnet.models.table import Network

NAME = "planted"
WIDTHS = (8, 12, 16)


class Planted(nn.Module):
    """A 3x3 stem without pooling and three stages of one and two basic blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, WIDTHS[0], kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(WIDTHS[0], WIDTHS[0], 1, None))
        self.layer2 = nn.Sequential(_narrowing(WIDTHS[0], WIDTHS[1]), BasicBlock(WIDTHS[1], WIDTHS[1], 1, None))
        self.layer3 = nn.Sequential(_narrowing(WIDTHS[1], WIDTHS[2]))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(WIDTHS[2], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, H, W] -> logits [N, 10]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _narrowing(in_channels: int, channels: int) -> BasicBlock:
    projection = nn.Conv2d(in_channels, channels, kernel_size=1, stride=2, bias=False)
    return BasicBlock(in_channels, channels, 2, nn.Sequential(projection, nn.BatchNorm2d(channels)))


def build(name: str) -> nn.Module:
    assert name == NAME
    return Planted()


ROW = Network(
    name=NAME,
    factory=f"{__name__}:build",
    input=(1, 20, 24),
    classes=10,
    block="basic",
    blocks=(1, 2, 1),
    reduction=4,
    width=WIDTHS[-1],
    published=False,
)
