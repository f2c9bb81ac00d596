"""Max pooling 3x3, stride 2, padding 1, of bf16 on CPUs with AVX512-BF16. The device code is pool.cpp."""

import ctypes

import torch
from torch import Tensor

from kernels.cpu.native import load

_CHANNELS = 32  # the number of channels is a multiple of this


def avx512_max_pool2d(x: Tensor) -> Tensor:
    """Compute max_pool2d(x, 3, stride=2, padding=1) of x [N, C, H, W] in bf16, channels_last, C a multiple of 32.

    Raises:
        RuntimeError: this CPU, this compiler or this tensor is not supported; the message says why.
    """
    n, c, h, w = x.shape
    if x.dtype != torch.bfloat16 or c % _CHANNELS or not x.is_contiguous(memory_format=torch.channels_last):
        raise RuntimeError(f"this kernel supports only bf16 in channels_last with channels in multiples of {_CHANNELS}")
    library = load("pool.cpp")
    out = torch.empty((n, c, (h + 1) // 2, (w + 1) // 2), dtype=x.dtype, memory_format=torch.channels_last)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, out))
    library.max_pool(*pointers, *map(ctypes.c_int64, (n, h, w, c, torch.get_num_threads())))
    return out
