"""The memory layout of the tensors of a launch."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["channels_last", "NCHW, 16", "NCHW"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A dense tensor [N, C, H, W] as kernels see it: [rows, channels], one of the two contiguous."""

    rows: int  # N * H * W
    channels: int
    pixels: int  # H * W
    width: int
    channels_last: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> "Matrix":
        n, channels, height, width = map(int, x.shape)
        return cls(
            rows=n * height * width,
            channels=channels,
            pixels=height * width,
            width=width,
            channels_last=x.is_contiguous(memory_format=torch.channels_last),
            dtype=x.dtype,
        )

    @property
    def layout(self) -> Layout:
        """The LAYOUT of device functions; see `kernels.launch.tiles`."""
        if self.channels_last:
            return "channels_last"
        return "NCHW, 16" if self.pixels % 16 == 0 else "NCHW"

    @property
    def sums(self) -> torch.dtype:
        """The dtype of sums and statistics."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def dense(x: Tensor) -> Tensor:
    """Return x [N, C, H, W] if it is contiguous in either memory format, otherwise a copy that is."""
    if x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous():
        return _materialised(x)
    return _materialised(
        x.contiguous(memory_format=torch.channels_last if x.stride(1) == 1 else torch.contiguous_format)
    )


def laid_out_like(z: Tensor, x: Tensor) -> Tensor:
    """Convert z [N, C, ...] to the memory format of dense x."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return _materialised(z.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format))


def _materialised(x: Tensor) -> Tensor:
    """Return a view of x, which torch.compile computes once; x itself it recomputes for every kernel that reads it."""
    return x.as_strided(x.shape, x.stride())


def empty_laid_out_like(x: Tensor, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """Allocate a tensor of another shape [N, C, H, W] in the memory format of dense x.

    Not by torch.empty(..., memory_format=...): torch.compile drops the format, then copies to a tensor that has it.
    """
    if not x.is_contiguous(memory_format=torch.channels_last):
        return x.new_empty(shape, dtype=dtype)
    _, channels, height, width = shape
    strides = (channels * height * width, 1, channels * width, channels)
    return x.new_empty_strided(shape, strides, dtype=dtype)
