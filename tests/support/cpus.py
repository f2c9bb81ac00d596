"""Marks of tests that need more than any CPU has."""

import shutil

import pytest
import torch

needs_avx512_bf16 = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported() or shutil.which("g++") is None,
    reason="needs a CPU with AVX512-BF16 instructions, and g++",
)
