"""The bottleneck block whose widest tensors are never written, as a module: see `kernels.bottleneck.forward`."""

import warnings
from typing import cast

import torch
from torch import Tensor, nn

from kernels.bottleneck.forward import bottleneck
from kernels.bottleneck.inference import bottleneck_inference, norm_line
from kernels.bottleneck.parts import Geometry
from kernels.products.plans import multiplies
from resnet.fused.batch_norm import FusedBatchNormAct2d, autocasts, has_hooks, is_plain, values
from resnet.fused.blocks import FusedBottleneck

_EMPTY = "its input is empty"
_MIXED = "some of its BatchNorms normalise by the batch and others do not"
_EVALUATED = "it is differentiated in evaluation mode"
_EXPECTED = frozenset({_EMPTY, _MIXED, _EVALUATED})  # reasons that need no warning
_FP64 = "its input is fp64, which Triton cannot multiply here"
_PRECISIONS = "its input and its filters differ in precision, and autocast is off"
_HOOKS = "there are hooks on its inner modules, which have to be called"


class GramBottleneck(FusedBottleneck):
    """One autograd node in training; two products and a convolution in evaluation without gradients.

    Other calls (hooks on a module inside, evaluation with gradients, an empty batch) are computed as in
    `FusedBottleneck`; hooks, mixed precisions and fp64 give a warning.
    """

    rebuild: bool = False  # if not set, the input of conv2 is saved for the backward pass

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the plain block computes."""
        reason = self._obstacle(x)
        if reason:
            if reason not in _EXPECTED:
                warnings.warn(f"a bottleneck block is computed layer by layer: {reason}", stacklevel=2)
            return super().forward(x)
        if autocasts(x):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        filters, norms = [conv.weight for conv in convolutions(self)], self._norms()
        if not self.bn1.normalises_by_batch():
            lines = [norm_line(norm.norm(), x) for norm in norms]
            return bottleneck_inference(x, filters, lines, self._geometry())
        operands = [norm.norm() for norm in norms]
        out, statistics = bottleneck(x, filters, operands, self._geometry(), keep=not self.rebuild)
        stride, (n, _, height, width) = self.conv1.stride[0], x.shape
        counts = [n * -(-height // stride) * -(-width // stride), *[values(out)] * (len(norms) - 1)]
        for norm, count, batch_statistics in zip(norms, counts, statistics, strict=True):
            norm.track(count, batch_statistics)
        return out

    def _obstacle(self, x: Tensor) -> str:
        """Return why this call has to be computed layer by layer; empty if it need not be."""
        norms, filters = self._norms(), [conv.weight for conv in convolutions(self)]
        if x.numel() == 0:
            return _EMPTY
        if any(has_hooks(child) for child in self.modules() if child is not self):
            return _HOOKS
        batch = {norm.normalises_by_batch() for norm in norms}
        if len(batch) > 1:
            return _MIXED
        parameters = (*filters, *(parameter for norm in norms for parameter in (norm.weight, norm.bias)))
        if batch == {False} and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters)):
            return _EVALUATED
        return _obstacle_of_precision(x, filters)

    def _norms(self) -> list[FusedBatchNormAct2d]:
        return cast("list[FusedBatchNormAct2d]", batch_norms(self))

    def _geometry(self) -> Geometry:
        first, middle, _, *projection = convolutions(self)
        return Geometry(
            first.stride[0],
            projection[0].stride[0] if projection else 1,
            list(middle.stride),
            [int(side) for side in middle.padding],
            list(middle.dilation),
            middle.groups,
        )


def _obstacle_of_precision(x: Tensor, filters: list[Tensor]) -> str:
    if autocasts(x):
        return ""
    if any(weight.dtype != x.dtype for weight in filters):
        return _PRECISIONS
    return "" if multiplies(x.dtype) else _FP64


def convolutions(block: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions of a bottleneck in order, that of a projected shortcut last."""
    return cast("list[nn.Conv2d]", [block.conv1, block.conv2, block.conv3, *_shortcut(block)[:1]])


def batch_norms(block: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the BatchNorm after each of its convolutions."""
    return cast("list[nn.BatchNorm2d]", [block.bn1, block.bn2, block.bn3, *_shortcut(block)[1:]])


def _shortcut(block: nn.Module) -> list[nn.Module]:
    shortcut = cast("nn.Sequential | None", block.downsample)
    return [] if shortcut is None else list(shortcut)


def obstacle(block: nn.Module) -> str:
    """Return why a `FusedBottleneck` cannot be one node; empty if it can."""
    first, middle, last, *projection = convolutions(block)
    products = {"conv1": first, "conv3": last, "projection": projection[0] if projection else first}
    for name, conv in products.items():
        if not _is_product(conv):
            return f"its {name} is not a plain 1x1 convolution"
    if last.stride[0] != 1:
        return "its conv3 has a stride"
    if not is_plain(middle):
        return "its conv2 has a bias, hooks, or padding other than by a number of zeros"
    if not all(norm.affine for norm in batch_norms(block)):
        return "one of its BatchNorms has no parameters"
    return ""


def _is_product(conv: nn.Conv2d) -> bool:
    """Whether a convolution does nothing but multiply pixels by filters."""
    square = conv.stride[0] == conv.stride[1]
    return is_plain(conv) and square and (conv.kernel_size, conv.padding, conv.groups) == ((1, 1), (0, 0), 1)
