"""The reference ResNet: plain eager PyTorch, explicit blocks, no performance flags. Boring on purpose.

Architecture: He et al., "Deep Residual Learning for Image Recognition" (2015), table 1. Module names, initialisation
and order of operations are torchvision's, so state_dicts are interchangeable, one seed gives the same weights, and
results are equal bit for bit.
"""

from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from resnet.models.table import NETWORKS

Version = Literal["v1", "v1.5"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., figure 5 left). The first convolution carries the stride."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: nn.Sequential | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, channels, ceil(H / stride), ceil(W / stride)]."""
        identity = x

        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)

        out = self.conv2(out)
        out = self.bn2(out)

        if self.downsample is not None:
            identity = self.downsample(x)

        out += identity
        activated: Tensor = self.relu(out)

        return activated


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al., figure 5 right).

    The stride sits in the 3x3 convolution (v1.5, as in torchvision) or in the first 1x1 (v1, as in the paper).
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int, downsample: nn.Sequential | None, *, version: Version
    ) -> None:
        super().__init__()
        stride1, stride2 = (stride, 1) if version == "v1" else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, stride=stride2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, 4 * channels, ceil(H / stride), ceil(W / stride)]."""
        identity = x

        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)

        out = self.conv2(out)
        out = self.bn2(out)
        out = self.relu(out)

        out = self.conv3(out)
        out = self.bn3(out)

        if self.downsample is not None:
            identity = self.downsample(x)

        out += identity
        activated: Tensor = self.relu(out)

        return activated


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, average pooling, classifier. `build_model` checks the arguments.

    `name` is the row of NETWORKS and `version` the place of the stride: neither follows from the weights.
    """

    def __init__(self, name: str, *, num_classes: int, in_channels: int, version: Version) -> None:
        super().__init__()
        self.name = name
        self.version = version
        blocks = NETWORKS[name].blocks
        expansion = BasicBlock.expansion if NETWORKS[name].block == "basic" else Bottleneck.expansion

        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._stage(64, 64, blocks[0], stride=1)
        self.layer2 = self._stage(64 * expansion, 128, blocks[1], stride=2)
        self.layer3 = self._stage(128 * expansion, 256, blocks[2], stride=2)
        self.layer4 = self._stage(256 * expansion, 512, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * expansion, num_classes)

    def _stage(self, in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
        """Make a stage of residual blocks; the first has the stride and, if shapes change, a projected shortcut."""
        basic = NETWORKS[self.name].block == "basic"
        block = BasicBlock if basic else partial(Bottleneck, version=self.version)
        out_channels = channels * (BasicBlock.expansion if basic else Bottleneck.expansion)
        downsample = None
        if stride != 1 or in_channels != out_channels:
            downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        first = block(in_channels, channels, stride, downsample)
        return nn.Sequential(first, *(block(out_channels, channels, 1, None) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, in_channels, H, W] to logits [N, num_classes], in the dtype of the weights and the images."""
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.maxpool(x)

        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)

        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        logits: Tensor = self.fc(x)

        return logits
