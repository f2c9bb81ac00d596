"""Kernels: one family, one file. Triton for GPUs; C++ for CPUs, where a file .py beside it makes the call.

Triton decides at its first import of a process whether it interprets kernels, so this comes before any of ours.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
