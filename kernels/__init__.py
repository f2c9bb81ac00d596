"""Kernels: one family, one file. Triton for GPUs; C++ for CPUs, where a file .py beside it makes the call."""
