"""Residual blocks and networks with fused BatchNorm; `resnet.fused.fuse` makes them from plain ones."""

import torch
from torch import Tensor, nn

from resnet.fused.batch_norm import FusedBatchNormAct2d


class FusedBasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; ReLU and residual add are fused into the BatchNorms."""

    conv1: nn.Conv2d
    bn1: FusedBatchNormAct2d
    conv2: nn.Conv2d
    bn2: FusedBatchNormAct2d
    downsample: nn.Sequential | None

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the plain block computes."""
        out = self.bn1.into(self.conv2, self.conv1(x))
        return _end_of_block(self.bn2, out, x, self.downsample)


class FusedBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; ReLU and residual add are fused into the BatchNorms."""

    conv1: nn.Conv2d
    bn1: FusedBatchNormAct2d
    conv2: nn.Conv2d
    bn2: FusedBatchNormAct2d
    conv3: nn.Conv2d
    bn3: FusedBatchNormAct2d
    downsample: nn.Sequential | None

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the plain block computes."""
        out = self.bn1.into(self.conv2, self.conv1(x))
        out = self.bn2.into(self.conv3, out)
        return _end_of_block(self.bn3, out, x, self.downsample)


class FusedResNet(nn.Module):
    """A residual network with BatchNorm, ReLU and pooling of the stem fused."""

    conv1: nn.Conv2d
    bn1: FusedBatchNormAct2d
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    avgpool: nn.AdaptiveAvgPool2d
    fc: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, in_channels, H, W] to logits [N, classes]."""
        x = self.bn1.pool(self.conv1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _end_of_block(norm: FusedBatchNormAct2d, out: Tensor, x: Tensor, downsample: nn.Sequential | None) -> Tensor:
    if downsample is None:
        y: Tensor = norm(out, x)
    else:
        projection, projection_norm = downsample
        y = norm(out, projection(x), projection_norm)
    return y
