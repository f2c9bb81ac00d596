"""Kernels in C++ for the CPU: a file of this folder is compiled on first use and called through ctypes."""

import ctypes
import os
import shlex
import subprocess
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-shared", "-fPIC")
_AVX512_BF16 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16")


def load(source: str) -> ctypes.CDLL:
    """Compile the C++ file `source` of this folder, once per process (about a second), and load it.

    It shares the OpenMP threads of torch if the compiler's OpenMP library is the one that torch loads.

    Raises:
        RuntimeError: this CPU has no AVX512-BF16 instructions, there is no C++ compiler, or compilation fails.
    """
    library, why_not = _build(source)
    if library is None:
        raise RuntimeError(why_not)
    return library


@cache
def _build(source: str) -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and the reason; cached, so that a compiler that failed is not tried again."""
    if not torch.cpu._is_avx512_bf16_supported():
        return None, "this CPU has no AVX512-BF16 instructions"
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    with as_file(files("kernels") / source) as path, TemporaryDirectory() as folder:
        library = Path(folder) / "kernel.so"
        command = [*compiler, *_FLAGS, *_AVX512_BF16, str(path), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")  # noqa: S603 - from CXX
            return ctypes.CDLL(str(library)), ""
        except FileNotFoundError:
            return None, f"there is no C++ compiler {compiler[0]!r}: install g++, or name one in CXX"
        except subprocess.CalledProcessError as error:
            return None, f"{compiler[0]} failed to compile {source}: {error.stderr.strip()}"
        except OSError as error:
            return None, f"{source} was compiled but cannot be loaded: {error}"
