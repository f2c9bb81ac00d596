"""Convolution, bias, residual add and ReLU in one pass on CPUs with AVX512-BF16: direct, or by Winograd's F(2x2, 3x3).

The device code is avx512_conv.cpp; its header states the algorithms and their traffic.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from kernels.native import load

Algorithm = Literal["direct", "winograd"]

CHANNELS = 32  # output channels come in multiples of this
_VECTOR = 16  # input channels that winograd transforms together
_MOST_KERNEL = 7
_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))  # the filter transform, Lavin and Gray 2016
_POINTERS = ("x", "weight", "bias", "residual", "out", "scratch")
_SIZES = ("n", "h", "w", "c", "k", "kernel", "stride", "padding", "out_h", "out_w", "relu", "threads")


class _Conv(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in _POINTERS] + [(name, ctypes.c_int64) for name in _SIZES]


class Avx512Conv2d:
    """relu(conv2d(x, weight, bias) + residual) in one pass over bf16 channels_last tensors, with fp32 sums.

    Winograd's transforms round once more than a direct convolution: about 1.5 times its error. Infinite or NaN numbers
    spread over the 4x4 input tile that they stand in.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        weight: Tensor,
        bias: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        relu: bool,
    ) -> None:
        """Pack weight [K, C, R, R] and bias [K], in bf16; the geometry is that of torch.conv2d, in two dimensions.

        Raises:
            RuntimeError: this CPU, this compiler or this convolution is not supported; the message says why.
        """
        _library()
        out_channels, channels, *kernel = weight.shape
        for supported, what in (
            (weight.dtype == torch.bfloat16, "bf16"),
            (groups == 1 and all(size == 1 for size in dilation), "convolutions without groups or dilation"),
            (all(len({*sizes}) == 1 for sizes in (kernel, stride, padding)), "square convolutions"),
            (kernel[0] <= _MOST_KERNEL, f"kernels up to {_MOST_KERNEL}x{_MOST_KERNEL}"),
            (channels % 2 == 0, "an even number of input channels"),
            (out_channels % CHANNELS == 0, f"output channels in multiples of {CHANNELS}"),
        ):
            _need(supported, what)
        if algorithm == "winograd":
            _need((kernel[0], stride[0], padding[0]) == (3, 1, 1), "3x3 convolutions at stride 1 with padding 1")
            _need(channels % _VECTOR == 0, f"input channels in multiples of {_VECTOR}")
        self._algorithm = algorithm
        taps = weight.permute(2, 3, 1, 0).flatten(0, 1) if algorithm == "direct" else _transform(weight)
        self._weight = _pack(taps)
        self._bias = bias.detach().float()
        self._zeros = torch.zeros(channels, dtype=torch.bfloat16)
        self._sizes = (channels, out_channels, kernel[0], stride[0], padding[0])
        self._relu = relu

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [N, C, H, W] and residual [N, K, H', W'], bf16 -> [N, K, H', W'] in channels_last, written over residual.

        Raises:
            RuntimeError: a tensor is of another dtype or layout, or residual of another shape.
        """
        n, _, h, w = x.shape
        channels, out_channels, kernel, stride, padding = self._sizes
        _check(x, (n, channels, h, w))
        out_h = (h + 2 * padding - kernel) // stride + 1
        out_w = (w + 2 * padding - kernel) // stride + 1
        if residual is None:
            shape = (n, out_channels, out_h, out_w)
            out = torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
        else:
            out = residual
            _check(out, (n, out_channels, out_h, out_w))
        call = _Conv(
            x.data_ptr(),
            self._weight.data_ptr(),
            self._bias.data_ptr(),
            None if residual is None else residual.data_ptr(),
            out.data_ptr(),
            self._zeros.data_ptr(),
            *(n, h, w, *self._sizes, out_h, out_w, self._relu, torch.get_num_threads()),
        )
        library = _library()
        if self._algorithm == "winograd":
            scratch = x.new_empty(library.winograd_scratch(ctypes.byref(call)))
            call.scratch = scratch.data_ptr()
        getattr(library, self._algorithm)(ctypes.byref(call))
        return out


@cache
def _library() -> ctypes.CDLL:
    library = load("avx512_conv.cpp")
    library.winograd_scratch.restype = ctypes.c_int64
    return library


def _need(supported: bool, what: str) -> None:
    if not supported:
        raise RuntimeError(f"takes only {what}")


def _check(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype != torch.bfloat16 or not tensor.is_contiguous(memory_format=torch.channels_last):
        raise RuntimeError(f"takes only bf16 in channels_last, not {tensor.dtype} with strides {tensor.stride()}")
    if tensor.shape != shape:
        raise RuntimeError(f"takes only a tensor of shape {list(shape)} here, not {list(tensor.shape)}")


def _transform(weight: Tensor) -> Tensor:
    """G g G^T for each filter of weight [K, C, 3, 3] -> [16, C, K], in fp64."""
    g = torch.tensor(_G, dtype=torch.float64)
    return torch.einsum("ia,kcab,jb->ijck", g, weight.detach().double(), g).flatten(0, 1)


def _pack(weight: Tensor) -> Tensor:
    """weight [taps, C, K] -> [K / 32, taps, C / 2, 32, 2], bf16: channels in pairs, as the instruction reads."""
    taps, channels, out_channels = weight.shape
    pairs = weight.detach().reshape(taps, channels // 2, 2, out_channels // CHANNELS, CHANNELS)
    return pairs.permute(3, 0, 1, 4, 2).contiguous().to(torch.bfloat16)
