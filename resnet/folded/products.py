"""Bottleneck networks for inference by products in Triton, with BatchNorm, shortcut and ReLU fused into each.

Every part of the network is computed by the fastest of its ways, which include those of `resnet.folded.layers`. A
block's first convolution adds a product with BatchNorm and ReLU fused (`product`); the rest of the block (`BlockEnd`)
adds:

    product             conv2 alone; then bn2, the last convolution and the shortcut, projected or not, in one product
    chained             the same, and in the same kernel the next block's first convolution, from registers
    ..., bn2 folded     bn2 and its ReLU are folded into conv2 instead

In the interpreter times mean nothing: the first way of a layer is taken.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from kernels.bottleneck.folded import Constants, block_chained, block_product, line_of
from kernels.launch.runtime import INTERPRETED, require_runnable
from kernels.products.block_chain import chainable
from resnet.folded.fastest import Fastest, Prepare, Way
from resnet.folded.layers import FoldedConv2d, FoldedLinear, FoldedMaxPool2d
from resnet.folded.network import fold, foldable
from resnet.models.resnet import Bottleneck, ResNet

Middle = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # y1 -> x2, and the line to normalise it by, if any
Outputs = tuple[Tensor, Tensor | None]  # a block's result, and that of the next block's first convolution if chained


class Unfolded(nn.Module):
    """The constants of a convolution and its BatchNorm, kept apart: filters are rounded once, as in eager."""

    filters: Tensor
    line: Tensor

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype, layout: torch.memory_format) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018 - FoldedConv2d checks
        mean = norm.running_mean.double() - (0.0 if conv.bias is None else conv.bias.detach().double())
        line = line_of(mean, norm.running_var, norm.weight, norm.bias, norm.eps).detach()
        self.register_buffer("filters", conv.weight.detach().to(dtype, copy=True, memory_format=layout))
        self.register_buffer("line", line.to(torch.float64 if dtype == torch.float64 else torch.float32))
        self.stride = conv.stride[0]

    @property
    def constants(self) -> Constants:
        """The constants of a 1x1 convolution for `block_product`."""
        return Constants(self.filters, self.line, self.stride)


class FirstConv2d(FoldedConv2d):
    """A block's first convolution with its BatchNorm and ReLU."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, dtype: torch.dtype) -> None:
        super().__init__(conv, norm, relu=True, dtype=dtype)
        self.unfolded = Unfolded(conv, norm, dtype, torch.contiguous_format)

    def ways(self, x: Tensor) -> dict[str, Prepare]:
        """Return a product, and the ways of a folded convolution."""
        return _without_a_clock({"product": lambda: self._product} | super().ways(x))

    def _product(self, x: Tensor, _: Tensor | None) -> Tensor:
        return block_product(x, self.unfolded.constants)


class BlockEnd(Fastest):
    """A block after its first convolution, and the next block's first convolution if the two can be chained.

    Takes y1 [N, K, H, W] and the block's input; returns `Outputs`, whose second is None if they cannot be chained.
    """

    def __init__(self, block: Bottleneck, following: FirstConv2d | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv2 = FoldedConv2d(block.conv2, block.bn2, relu=True, dtype=dtype)
        self.conv3 = FoldedConv2d(block.conv3, block.bn3, relu=True, dtype=dtype)
        self.unfolded2 = Unfolded(block.conv2, block.bn2, dtype, torch.channels_last)
        self.unfolded3 = Unfolded(block.conv3, block.bn3, dtype, torch.contiguous_format)
        self.downsample: FoldedConv2d | None = None
        self.projection: Unfolded | None = None
        if block.downsample is not None:
            conv, norm = cast("tuple[nn.Conv2d, nn.BatchNorm2d]", tuple(block.downsample))
            self.downsample = FoldedConv2d(conv, norm, relu=False, dtype=dtype)
            self.projection = Unfolded(conv, norm, dtype, torch.contiguous_format)
        self._following = (
            [] if following is None else [following]
        )  # in a list, lest it be registered: it is the next block's child

    def ways(self, x: Tensor) -> dict[str, Prepare]:
        """Return the ways that the module's docstring lists."""
        ends = {"product": self._product}
        if self._chainable(x.dtype):
            ends = {"chained": self._chained} | ends
        middles: dict[str, Middle] = {"": self._convolved, ", bn2 folded": self._activated}
        ways: dict[str, Prepare] = {
            end + middle: partial(self._way, middles[middle], ends[end]) for middle in middles for end in ends
        }
        return _without_a_clock(ways | {"folded": lambda: self._folded})

    def _choose(self, x: Tensor, residual: Tensor | None) -> Way:
        """Choose, then reset the choices that parts made while measured; those of them in use choose again."""
        way = super()._choose(x, residual)
        for part in (self.conv2, self.conv3, self.downsample, *self._following):
            if part is not None:
                part.forget()
        return way

    def _chainable(self, dtype: torch.dtype) -> bool:
        columns, inner = map(int, self.unfolded3.filters.shape[:2])
        projected = 0 if self.projection is None else int(self.projection.filters.shape[1])
        return any(
            following.unfolded.stride == 1 and chainable(dtype, inner, columns, int(following.bias.numel()), projected)
            for following in self._following
        )

    def _way(self, middle: Middle, end: Callable[[Tensor, Tensor | None, Tensor], Outputs]) -> Way:
        return lambda y, shortcut: end(*middle(y), cast("Tensor", shortcut))

    def _convolved(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        return F.conv2d(y, self.unfolded2.filters, None, *self.conv2.geometry), self.unfolded2.line

    def _activated(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.conv2.forward(y), None

    def _projection(self) -> Constants | None:
        return None if self.projection is None else self.projection.constants

    def _product(self, x: Tensor, line: Tensor | None, shortcut: Tensor) -> Outputs:
        return self._then(block_product(x, self.unfolded3.constants, line, shortcut, self._projection()))

    def _chained(self, x: Tensor, line: Tensor | None, shortcut: Tensor) -> Outputs:
        (following,) = self._following
        constants = following.unfolded.constants
        return block_chained(x, self.unfolded3.constants, line, shortcut, self._projection(), constants)

    def _folded(self, y: Tensor, shortcut: Tensor | None) -> Outputs:
        residual = shortcut if self.downsample is None else self.downsample.forward(cast("Tensor", shortcut))
        return self._then(self.conv3.forward(self.conv2.forward(y), residual))

    def _then(self, out: Tensor) -> Outputs:
        """Compute the next block's first convolution too if it can be chained, so that ways are compared fairly."""
        return out, self._following[0].forward(out) if self._chainable(out.dtype) else None


def _without_a_clock(ways: dict[str, Prepare]) -> dict[str, Prepare]:
    """In the interpreter, whose times mean nothing, return only the first way, whose kernels are to be checked."""
    return dict([next(iter(ways.items()))]) if INTERPRETED else ways


class ProductBottleneck(nn.Module):
    """A bottleneck block: its first convolution, and its end, which may include the next block's first convolution."""

    def __init__(self, block: Bottleneck, own: FirstConv2d, following: FirstConv2d | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv1 = own
        self.end = BlockEnd(block, following, dtype)

    def forward(self, x: Tensor, y: Tensor | None) -> Outputs:
        """Run on x [N, C, H, W], and on y1 if the block before has computed it; both may be overwritten."""
        outputs: Outputs = self.end.forward(self.conv1.forward(x) if y is None else y, x)
        return outputs


class ProductResNet(nn.Module):
    """The whole network, by products."""

    def __init__(self, model: ResNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.conv1 = FoldedConv2d(model.conv1, model.bn1, relu=True, dtype=dtype)
        self.maxpool = FoldedMaxPool2d()
        stages = [cast("list[Bottleneck]", list(stage)) for stage in _stages(model)]
        firsts = [FirstConv2d(block.conv1, block.bn1, dtype=dtype) for stage in stages for block in stage]
        followed = iter(zip(firsts, [*firsts[1:], None], strict=True))
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.ModuleList(ProductBottleneck(block, *next(followed), dtype) for block in stage) for stage in stages
        )
        self.fc = FoldedLinear(model.fc, dtype=dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] in any floating dtype to logits [N, classes] in the folded dtype."""
        require_runnable(images.device)
        x = self.maxpool(self.conv1(images.to(self.dtype)))
        y: Tensor | None = None
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x, y = block(x, y)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stages(model: ResNet) -> tuple[nn.Sequential, ...]:
    return model.layer1, model.layer2, model.layer3, model.layer4


def fold_into_products(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Make a folded copy of `model` for inference in `dtype` inside a CUDA graph, on the same device.

    For a network of basic blocks, whose only 1x1 convolutions are projections, this is the same as `fold`.

    Raises:
        ValueError: the model is no reference ResNet.
    """
    plain = foldable(model)
    network: nn.Module
    if isinstance(plain.layer1[0], Bottleneck):
        network = ProductResNet(plain, dtype).to(plain.fc.weight.device).eval()
    else:
        network = fold(model, dtype)
    for module in network.modules():
        if isinstance(module, Fastest):
            module.captured = True
    return network
