"""Inference with BatchNorm folded into the convolutions; ReLU and residual add fused into them where that is faster.

Folding: with y = gamma (conv(x, W) - mean) / sqrt(var + eps) + beta, the convolution takes the weight
W gamma / sqrt(var + eps) per output channel and the bias beta - mean gamma / sqrt(var + eps) (Jacob et al., 2018,
section 3.2).
"""

from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from time import perf_counter_ns
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.nn.utils.fusion import fuse_conv_bn_weights

from resnet.model import BasicBlock, Bottleneck, ResNet

_TRIALS = 7  # timed runs of each candidate; the median decides
_STEM_KERNEL = 7


class FoldedConv2d(nn.Module):
    """Convolution with its BatchNorm folded in, then an optional residual add and ReLU.

    The first call on real input tries every way that this device offers (`_CANDIDATES`), times those that accept the
    layer and keeps the fastest: `choice` names it, `rejected` says why others were not taken.
    """

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, *, relu: bool, dtype: torch.dtype) -> None:
        """Fold in fp64, keep in `dtype`."""
        super().__init__()
        if bn.running_mean is None or bn.running_var is None:
            raise ValueError("folding needs running statistics, and this BatchNorm2d has track_running_stats=False")
        if isinstance(conv.padding, str):
            raise ValueError(f"folding needs padding in numbers, not {conv.padding!r}")  # noqa: TRY004
        weight, bias = fuse_conv_bn_weights(
            conv.weight.double(),
            None if conv.bias is None else conv.bias.double(),
            bn.running_mean.double(),
            bn.running_var.double(),
            bn.eps,
            None if bn.weight is None else bn.weight.double(),
            None if bn.bias is None else bn.bias.double(),
        )
        self.weight = nn.Parameter(weight.to(dtype, memory_format=torch.channels_last), requires_grad=False)
        self.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        self.geometry: tuple[list[int], list[int], list[int], int]
        self.geometry = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
        self.relu = relu
        self.choice = ""
        self.rejected: dict[str, str] = {}
        self._packed: Tensor | None = None
        self._run: Callable[[Tensor, Tensor | None], Tensor] | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [N, C, H, W] and residual [N, K, H', W'] in the folded dtype, channels_last -> [N, K, H', W'].

        The output may be written over the residual, which saves a buffer and its trip to memory.
        """
        if self._run is None:
            self._run = self._choose(x, residual)
        return self._run(x, residual)

    def _choose(self, x: Tensor, residual: Tensor | None) -> Callable[[Tensor, Tensor | None], Tensor]:
        """Measure the candidates on this input; the one with the smallest median time wins."""
        ways = {"separate": FoldedConv2d._separate} | _CANDIDATES.get(x.device.type, {})
        target = None if residual is None else residual.clone()  # the trials write over it
        accepted: dict[str, Callable[[], Tensor]] = {}
        for name, way in ways.items():
            try:
                way(self, x, target)
            except RuntimeError as error:
                self.rejected[name] = str(error).split("\n", 1)[0].split(". ", 1)[0]
            else:
                accepted[name] = partial(way, self, x, target)
        medians = _medians_ms(accepted, x.device)
        self.choice = min(medians, key=lambda name: medians[name])
        return partial(ways[self.choice], self)

    def _separate(self, x: Tensor, residual: Tensor | None) -> Tensor:
        stride, padding, dilation, groups = self.geometry
        out = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        if residual is not None:
            out += residual
        return out.relu_() if self.relu else out

    def _cudnn(self, x: Tensor, residual: Tensor | None) -> Tensor:
        if not self.relu:
            raise RuntimeError("it ends in a ReLU, which this layer has not")
        if self.weight.shape[-1] == _STEM_KERNEL:
            raise RuntimeError("kept off the 7x7 stem")
        stride, padding, dilation, groups = self.geometry
        if residual is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, stride, padding, dilation, groups)
        return torch.cudnn_convolution_add_relu(
            x, self.weight, residual, 1.0, self.bias, stride, padding, dilation, groups
        )

    def _onednn(self, x: Tensor, residual: Tensor | None) -> Tensor:
        stride, padding, dilation, groups = self.geometry
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, padding, stride, dilation, groups, list(x.shape)
            )
        geometry = (padding, stride, dilation, groups)
        out: Tensor
        if residual is None:
            out = torch.ops.mkldnn._convolution_pointwise(
                x, self._packed, self.bias, *geometry, "relu" if self.relu else "none", [], None
            )
        else:
            out = torch.ops.mkldnn._convolution_pointwise_(
                residual, x, self._packed, self.bias, *geometry, "add", None, "relu" if self.relu else None, [], None
            )
        return out


_CANDIDATES: dict[str, dict[str, Callable[[FoldedConv2d, Tensor, Tensor | None], Tensor]]] = {
    "cuda": {"cudnn-fused": FoldedConv2d._cudnn},
    "cpu": {"onednn-fused": FoldedConv2d._onednn},
}


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
        """x [N, C, H, W] -> [N, C', H', W'], both in the folded dtype; x may be written over."""
        residual = x if self.downsample is None else self.downsample(x)
        *first, last = self.convs
        for conv in first:
            x = conv(x)
        out: Tensor = last(x, residual)
        return out


class FoldedResNet(nn.Module):
    """The whole network folded."""

    def __init__(self, model: ResNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.conv1 = FoldedConv2d(model.conv1, model.bn1, relu=True, dtype=dtype)
        self.maxpool = model.maxpool
        stages = (model.layer1, model.layer2, model.layer3, model.layer4)
        for number, stage in enumerate(stages, start=1):
            blocks = cast("Iterable[BasicBlock | Bottleneck]", stage)
            self.add_module(f"layer{number}", nn.Sequential(*(FoldedBlock(block, dtype) for block in blocks)))
        self.avgpool = model.avgpool
        self.fc = nn.Linear(model.fc.in_features, model.fc.out_features, dtype=dtype)
        self.fc.load_state_dict(model.fc.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        """images [N, C, H, W] in any floating dtype -> logits [N, classes] in the folded dtype."""
        x = self.maxpool(self.conv1(images.to(self.dtype)))
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def fold(model: ResNet, dtype: torch.dtype) -> FoldedResNet:
    """A folded copy of `model` for inference in `dtype`, on the same device; `model` is left as it was."""
    device = next(model.parameters()).device
    return FoldedResNet(model, dtype).to(device).eval()


def choices(model: nn.Module) -> dict[str, str]:
    """What each folded convolution of `model` decided at its first call, by module name."""
    return {
        name: module.choice + "".join(f"; {other} refused: {why}" for other, why in module.rejected.items())
        for name, module in model.named_modules()
        if isinstance(module, FoldedConv2d) and module.choice
    }


def _medians_ms(calls: dict[str, Callable[[], Tensor]], device: torch.device) -> dict[str, float]:
    """Median time of each call, taken in turns, so that a drift of the machine meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_TRIALS):
        for name, call in calls.items():
            _synchronize(device)
            start = perf_counter_ns()
            call()
            _synchronize(device)
            times[name].append((perf_counter_ns() - start) / 1e6)
    return {name: median(values) for name, values in times.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
