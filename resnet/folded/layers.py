"""Layers for inference: BatchNorm folded into convolutions, ReLU and residual add fused into them where faster.

Folding: with y = gamma (conv(x, W) - mean) / sqrt(var + eps) + beta, the convolution takes the weight
W gamma / sqrt(var + eps) per output channel and the bias beta - mean gamma / sqrt(var + eps) (Jacob et al., 2018,
section 3.2).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kernels.cpu.conv import CHANNELS, Algorithm, Avx512Conv2d
from kernels.cpu.pool import avx512_max_pool2d
from resnet.folded.fastest import Fastest, Prepare, Way

_STEM_KERNEL = 7


class FoldedConv2d(Fastest):
    """Convolution with its BatchNorm folded in, then an optional residual add and ReLU, by the fastest of its ways."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, *, relu: bool, dtype: torch.dtype) -> None:
        """Fold in fp64, store in `dtype`.

        Raises:
            ValueError: the BatchNorm has no running statistics, or the padding is given by name.
        """
        super().__init__()
        if bn.running_mean is None or bn.running_var is None:
            raise ValueError("folding needs running statistics, but a BatchNorm2d has track_running_stats=False")
        if isinstance(conv.padding, str):
            raise ValueError(f"folding needs padding in numbers, but a Conv2d has padding={conv.padding!r}")  # noqa: TRY004
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

    def ways(self, x: Tensor) -> dict[str, Prepare]:
        """Return separate calls, and the fused ones of this type of device (`_CANDIDATES`)."""
        ways = {"separate": FoldedConv2d._separate} | _CANDIDATES.get(x.device.type, {})
        if _on_cpu_in_bf16(x):
            ways |= _AVX512
        return {name: partial(prepare, self, x) for name, prepare in ways.items()}

    def _separate(self, _: Tensor) -> Way:
        return self._convolve_add_relu

    def _convolve_add_relu(self, x: Tensor, residual: Tensor | None) -> Tensor:
        out = F.conv2d(x, self.weight, self.bias, *self.geometry)
        if residual is not None:
            out += residual
        return out.relu_() if self.relu else out

    def _cudnn(self, _: Tensor) -> Way:
        if not self.relu:
            raise RuntimeError("it ends in a ReLU, but this layer does not")
        if self.weight.shape[-1] == _STEM_KERNEL:
            raise RuntimeError("it is not used for the 7x7 stem")

        def way(x: Tensor, residual: Tensor | None) -> Tensor:
            if residual is None:
                return torch.cudnn_convolution_relu(x, self.weight, self.bias, *self.geometry)
            return torch.cudnn_convolution_add_relu(x, self.weight, residual, 1.0, self.bias, *self.geometry)

        return way

    def _onednn(self, like: Tensor) -> Way:
        stride, padding, dilation, groups = self.geometry
        geometry = (padding, stride, dilation, groups)
        packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *geometry, list(like.shape))
        relu = "relu" if self.relu else None

        def way(x: Tensor, residual: Tensor | None) -> Tensor:
            out: Tensor
            if residual is None:
                out = torch.ops.mkldnn._convolution_pointwise(x, packed, self.bias, *geometry, relu or "none", [], None)
            else:
                out = torch.ops.mkldnn._convolution_pointwise_(
                    residual, x, packed, self.bias, *geometry, "add", None, relu, [], None
                )
            return out

        return way

    def _avx512(self, _: Tensor, algorithm: Algorithm) -> Way:
        return Avx512Conv2d(algorithm, self.weight, self.bias, *self.geometry, self.relu)


_CANDIDATES: dict[str, dict[str, Callable[[FoldedConv2d, Tensor], Way]]] = {
    "cuda": {"cudnn-fused": FoldedConv2d._cudnn},
    "cpu": {"onednn-fused": FoldedConv2d._onednn},
}
_AVX512: dict[str, Callable[[FoldedConv2d, Tensor], Way]] = {
    "avx512-direct": partial(FoldedConv2d._avx512, algorithm="direct"),
    "avx512-winograd": partial(FoldedConv2d._avx512, algorithm="winograd"),
}


class FoldedLinear(Fastest):
    """The classifier, by the fastest of its ways."""

    def __init__(self, linear: nn.Linear, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(dtype, copy=True), requires_grad=False)
        self.bias = nn.Parameter(linear.bias.detach().to(dtype, copy=True), requires_grad=False)

    def ways(self, x: Tensor) -> dict[str, Prepare]:
        """Return PyTorch's way, and in bf16 on CPU our own: a 1x1 convolution of one pixel."""
        ways: dict[str, Prepare] = {"aten": lambda: self._aten}
        if _on_cpu_in_bf16(x):
            ways["avx512-direct"] = self._avx512
        return ways

    def _aten(self, x: Tensor, _: Tensor | None) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def _avx512(self) -> Way:
        classes = self.bias.numel()
        more = -classes % CHANNELS
        weight = F.pad(self.weight, (0, 0, 0, more))[:, :, None, None]
        convolve = Avx512Conv2d("direct", weight, F.pad(self.bias, (0, more)), (1, 1), (0, 0), (1, 1), 1, relu=False)
        return lambda x, _: convolve(x[:, :, None, None]).flatten(1)[:, :classes]


class FoldedMaxPool2d(Fastest):
    """The stem's max pooling, 3x3 at stride 2, by the fastest of its ways."""

    def ways(self, x: Tensor) -> dict[str, Prepare]:
        """Return PyTorch's way, and in bf16 on CPU our own, which does not store the places of the maxima."""
        ways: dict[str, Prepare] = {"aten": lambda: lambda x, _: F.max_pool2d(x, 3, stride=2, padding=1)}
        if _on_cpu_in_bf16(x):
            ways["avx512"] = lambda: lambda x, _: avx512_max_pool2d(x)
        return ways


def _on_cpu_in_bf16(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16
