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
_EXPECTED = frozenset({_EMPTY, _MIXED, _EVALUATED})  # nobody has to be told
_FP64 = "its input is fp64, of which Triton has no products here"
_PRECISIONS = "its input and its filters differ in precision, without autocast"
_HOOKS = "there are hooks on modules inside, which have to be called"


class GramBottleneck(FusedBottleneck):
    """One node of autograd in training; two products and a convolution in evaluation without gradients.

    Where that is not what is asked for (hooks on a module inside, evaluation with gradients, an empty batch), it is
    computed as `FusedBottleneck` does; of hooks, mixed precisions and fp64 a warning tells.
    """

    rebuild: bool = False  # else what conv2 takes is kept for the backward pass

    def forward(self, x: Tensor) -> Tensor:
        """As the plain block."""
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
        for norm, count, found in zip(norms, counts, statistics, strict=True):
            norm.track(count, found)
        return out

    def _obstacle(self, x: Tensor) -> str:
        """Why this very input has to be computed layer by layer; empty if it has not."""
        norms, filters = self._norms(), [conv.weight for conv in convolutions(self)]
        if x.numel() == 0:
            return _EMPTY
        if any(has_hooks(child) for child in self.modules() if child is not self):
            return _HOOKS
        batch = {norm.normalises_by_batch() for norm in norms}
        if len(batch) > 1:
            return _MIXED
        parameters = (*filters, *(parameter for norm in norms for parameter in (norm.weight, norm.bias)))
        if batch == {False} and torch.is_grad_enabled() and any(of.requires_grad for of in (x, *parameters)):
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
    if any(of.dtype != x.dtype for of in filters):
        return _PRECISIONS
    return "" if multiplies(x.dtype) else _FP64


def convolutions(block: nn.Module) -> list[nn.Conv2d]:
    """Of a bottleneck, in order, that of a projected shortcut last."""
    return cast("list[nn.Conv2d]", [block.conv1, block.conv2, block.conv3, *_shortcut(block)[:1]])


def batch_norms(block: nn.Module) -> list[nn.BatchNorm2d]:
    """The BatchNorm behind each of them."""
    return cast("list[nn.BatchNorm2d]", [block.bn1, block.bn2, block.bn3, *_shortcut(block)[1:]])


def _shortcut(block: nn.Module) -> list[nn.Module]:
    shortcut = cast("nn.Sequential | None", block.downsample)
    return [] if shortcut is None else list(shortcut)


def obstacle(block: nn.Module) -> str:
    """Why a bottleneck that could be a `FusedBottleneck` cannot be one node; empty if it can."""
    first, middle, last, *projection = convolutions(block)
    products = {"conv1": first, "conv3": last, "projection": projection[0] if projection else first}
    for name, conv in products.items():
        if not _is_product(conv):
            return f"its {name} is not a plain 1x1 convolution"
    if last.stride[0] != 1:
        return "its conv3 has a stride"
    if not is_plain(middle):
        return "its conv2 has a bias, hooks, or other padding than by a number of zeros"
    if not all(norm.affine for norm in batch_norms(block)):
        return "a BatchNorm has no parameters"
    return ""


def _is_product(conv: nn.Conv2d) -> bool:
    """Whether a convolution multiplies pixels by filters and does nothing else."""
    square = conv.stride[0] == conv.stride[1]
    return is_plain(conv) and square and (conv.kernel_size, conv.padding, conv.groups) == ((1, 1), (0, 0), 1)
