"""Kernels, one family per file: Triton for GPUs, C++ for CPUs (called from the .py file beside it).

In your own code: `from kernels import Norm, bn_act, bn_act_conv, bn_pool`, before or after torchvision and Triton.

Triton decides where a kernel is decorated whether it interprets it, so this comes before any of ours.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from kernels.batch_norm.act import bn_act
    from kernels.batch_norm.act_conv import bn_act_conv
    from kernels.batch_norm.pool import bn_pool
    from kernels.kernel import Norm

__all__ = ["Norm", "bn_act", "bn_act_conv", "bn_pool"]

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

_HOMES = {
    "Norm": "kernels.kernel",
    "bn_act": "kernels.batch_norm.act",
    "bn_act_conv": "kernels.batch_norm.act_conv",
    "bn_pool": "kernels.batch_norm.pool",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - depends on the name
    if name not in _HOMES:
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
