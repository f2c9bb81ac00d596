"""The network with folded BatchNorm."""

from typing import cast

import torch
from torch import Tensor, nn

from resnet.folded.layers import FoldedConv2d, FoldedLinear, FoldedMaxPool2d
from resnet.models.resnet import BasicBlock, Bottleneck, ResNet


class FoldedBlock(nn.Module):
    """A residual block of either kind: a chain of folded convolutions, the last one with the residual add."""

    def __init__(self, block: BasicBlock | Bottleneck, dtype: torch.dtype) -> None:
        super().__init__()
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        self.convs = nn.ModuleList(FoldedConv2d(*pair, relu=True, dtype=dtype) for pair in pairs)
        self.downsample: FoldedConv2d | None = None
        if block.downsample is not None:
            conv, bn = block.downsample
            assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)  # noqa: S101, PT018
            self.downsample = FoldedConv2d(conv, bn, relu=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, C, H, W] to [N, C', H', W'], both in the folded dtype; x may be overwritten."""
        residual = x if self.downsample is None else self.downsample.forward(x)
        *first, last = self.convs
        for conv in first:
            x = conv.forward(x)  # not conv(x): the overhead of a module's call counts at batch 1
        out: Tensor = last.forward(x, residual)
        return out


class FoldedResNet(nn.Module):
    """The whole folded network."""

    def __init__(self, model: ResNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.conv1 = FoldedConv2d(model.conv1, model.bn1, relu=True, dtype=dtype)
        self.maxpool = FoldedMaxPool2d()
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(*(FoldedBlock(cast("BasicBlock | Bottleneck", block), dtype) for block in stage))
            for stage in (model.layer1, model.layer2, model.layer3, model.layer4)
        )
        self.fc = FoldedLinear(model.fc, dtype=dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] in any floating dtype to logits [N, classes] in the folded dtype."""
        x = self.maxpool(self.conv1(images.to(self.dtype)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def fold(model: nn.Module, dtype: torch.dtype) -> FoldedResNet:
    """Make a folded copy of `model` for inference in `dtype`, on the same device; `model` is not changed.

    Raises:
        ValueError: the model is no reference ResNet.
    """
    network = foldable(model)
    return FoldedResNet(network, dtype).to(next(network.parameters()).device).eval()


def foldable(model: nn.Module) -> ResNet:
    """Return the model if it can be folded.

    Raises:
        ValueError: it is no reference ResNet.
    """
    if not isinstance(model, ResNet):
        raise ValueError(f"{type(model).__name__} cannot be folded: only the reference ResNets can")  # noqa: TRY004
    return model
