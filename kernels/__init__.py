"""Triton kernels: one family, one file."""
