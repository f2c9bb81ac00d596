"""Convolution, bias, residual add and ReLU in one pass on CPUs with AVX512-BF16: direct, or by Winograd's F(2x2, 3x3).

The device code is conv.cpp and the headers beside it; its first lines state the algorithms and their traffic.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from kernels.cpu.native import load

Algorithm = Literal["direct", "winograd"]

CHANNELS = 32  # the number of output channels is a multiple of this
_VECTOR = 16  # input channels that winograd transforms together
_MOST_KERNEL = 7
_ROW = 32  # values of a row of the kernel that are copied together
_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))  # the filter transform, Lavin and Gray 2016


class _Sizes(ctypes.Structure):
    """The struct `Sizes` of product.hpp."""

    _names = ("n", "h", "w", "c", "k", "kernel", "stride", "padding", "out_h", "out_w", "relu", "threads")
    _fields_ = [(name, ctypes.c_int64) for name in _names]


class Avx512Conv2d:
    """relu(conv2d(x, weight, bias) + residual) in one pass over bf16 channels_last tensors, with fp32 sums.

    Winograd's transforms round once more than a direct convolution: about 1.5 times its error. An infinity or NaN there
    spreads to all outputs of the 4x4 input tiles that contain it.
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
        """Pack weight [K, C, R, R] and bias [K] in bf16; the other arguments are those of torch.conv2d, as sequences.

        Raises:
            RuntimeError: this CPU, this compiler or this convolution is not supported; the message says why.
        """
        _functions(algorithm)
        out_channels, channels, *kernel = weight.shape
        for supported, what in (
            (weight.dtype == torch.bfloat16, "bf16"),
            (groups == 1 and all(size == 1 for size in dilation), "convolutions without groups or dilation"),
            (all(len({*sizes}) == 1 for sizes in (kernel, stride, padding)), "square convolutions"),
            (kernel[0] <= _MOST_KERNEL, f"kernels up to {_MOST_KERNEL}x{_MOST_KERNEL}"),
            (
                channels % 2 == 0 or kernel[0] * channels <= _ROW,
                f"an even number of input channels, or up to {_ROW} values in a row of the kernel",
            ),
            (out_channels % CHANNELS == 0, f"output channels in multiples of {CHANNELS}"),
        ):
            _need(supported, what)
        if algorithm == "winograd":
            _need((kernel[0], stride[0], padding[0]) == (3, 1, 1), "3x3 convolutions at stride 1 with padding 1")
            _need(channels % _VECTOR == 0, f"input channels in multiples of {_VECTOR}")
        self._layer = _Layer(algorithm, channels, out_channels, kernel[0], stride[0], padding[0], relu)
        self._weight = _pack(_taps(weight) if algorithm == "direct" else _transform(weight))
        self._bias = bias.detach().float()

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return [N, K, H', W'] in bf16, channels_last, from x [N, C, H, W] and residual, which it is written over.

        Raises:
            RuntimeError: a tensor has another dtype or layout, or residual another shape.
        """
        call = _call(self._layer, x.shape, torch.get_num_threads())
        _check(x, call.shape)
        if residual is None:
            out = torch.empty(call.out_shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
        else:
            out = residual
            _check(out, call.out_shape)
        scratch = x.new_empty(call.scratch)
        call.run(
            call.sizes,
            x.data_ptr(),
            self._weight.data_ptr(),
            self._bias.data_ptr(),
            None if residual is None else out.data_ptr(),
            out.data_ptr(),
            scratch.data_ptr(),
        )
        return out


class _Layer(NamedTuple):
    algorithm: Algorithm
    channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: int
    relu: bool


class _Call(NamedTuple):
    run: Callable[..., None]
    sizes: object  # a reference to _Sizes
    scratch: int  # values
    shape: tuple[int, ...]
    out_shape: tuple[int, ...]


@cache
def _call(layer: _Layer, shape: tuple[int, ...], threads: int) -> _Call:
    """Cache what all calls of a layer on such an input have in common: at batch 1 computing it would take too long."""
    n, _, h, w = shape
    out_h, out_w = ((size + 2 * layer.padding - layer.kernel) // layer.stride + 1 for size in (h, w))
    sizes = ctypes.byref(_Sizes(n, h, w, *layer[1:-1], out_h, out_w, layer.relu, threads))
    run, scratch = _functions(layer.algorithm)
    return _Call(run, sizes, scratch(sizes), (n, layer.channels, h, w), (n, layer.out_channels, out_h, out_w))


@cache
def _functions(algorithm: Algorithm) -> tuple[Callable[..., None], Callable[..., int]]:
    """Return the function that convolves, and the one that returns how many values of scratch it needs."""
    library = load("conv.cpp")
    run, scratch = library[algorithm], library[f"{algorithm}_scratch"]
    run.argtypes = [ctypes.POINTER(_Sizes), *6 * (ctypes.c_void_p,)]  # x, weight, bias, residual, out, scratch
    scratch.restype = ctypes.c_int64
    return run, scratch


def _need(supported: bool, what: str) -> None:
    if not supported:
        raise RuntimeError(f"this kernel supports only {what}")


def _check(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype != torch.bfloat16 or not tensor.is_contiguous(memory_format=torch.channels_last):
        raise RuntimeError(
            f"this kernel supports only bf16 in channels_last, not {tensor.dtype} with strides {tensor.stride()}"
        )
    if tensor.shape != shape:
        raise RuntimeError(f"this tensor has to have the shape {list(shape)}, not {list(tensor.shape)}")


def _taps(weight: Tensor) -> Tensor:
    """Reorder weight [K, C, R, R] to [R * R, C, K], or for odd C to [1, R * R * C, K], zero-padded to an even size."""
    taps = weight.permute(2, 3, 1, 0).flatten(0, 1)
    if weight.shape[1] % 2 == 0:
        return taps
    taps = taps.flatten(0, 1)
    return F.pad(taps, (0, 0, 0, taps.shape[0] % 2))[None]


def _transform(weight: Tensor) -> Tensor:
    """Transform each filter g of weight [K, C, 3, 3] to G g G^T: [16, C, K], in fp64."""
    g = torch.tensor(_G, dtype=torch.float64)
    return torch.einsum("ia,kcab,jb->ijck", g, weight.detach().double(), g).flatten(0, 1)


def _pack(weight: Tensor) -> Tensor:
    """Pack weight [taps, run, K] as [K / 32, taps, run / 2, 32, 2], bf16: in pairs, as the instruction reads them."""
    taps, run, out_channels = weight.shape
    pairs = weight.detach().reshape(taps, run // 2, 2, out_channels // CHANNELS, CHANNELS)
    return pairs.permute(3, 0, 1, 4, 2).contiguous().to(torch.bfloat16)
