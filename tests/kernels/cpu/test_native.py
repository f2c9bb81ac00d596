from collections.abc import Callable, Iterator
from ctypes import CDLL
from pathlib import Path

import pytest
import torch

from kernels.cpu import native
from tests.support.cpus import needs_avx512_bf16

SOURCE = "pool.cpp"


@pytest.fixture
def fresh_load() -> Iterator[Callable[[str], CDLL]]:
    """Forgets what was compiled before, and what a test compiled."""
    native._build.cache_clear()
    yield native.load
    native._build.cache_clear()


@needs_avx512_bf16
def test_a_file_is_compiled_once_and_loaded(fresh_load: Callable[[str], CDLL]) -> None:
    library = fresh_load(SOURCE)
    assert library.max_pool is not None
    assert fresh_load(SOURCE) is library


@needs_avx512_bf16
def test_it_brings_no_openmp_threads_of_its_own(fresh_load: Callable[[str], CDLL]) -> None:
    fresh_load(SOURCE)
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp.so" in line}
    assert len(mapped) == 1


def test_a_cpu_without_the_instructions_is_told(
    fresh_load: Callable[[str], CDLL], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(RuntimeError, match="no AVX512-BF16"):
        fresh_load(SOURCE)


@pytest.mark.parametrize(
    ("compiler", "why"),
    [
        ("no-such-compiler -O1", "no C\\+\\+ compiler 'no-such-compiler': install g\\+\\+"),
        ("false", "false failed to compile pool.cpp"),
        ("true", "compiled but cannot be loaded"),
    ],
)
def test_a_compiler_that_is_missing_or_fails_is_named(
    fresh_load: Callable[[str], CDLL], monkeypatch: pytest.MonkeyPatch, compiler: str, why: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(RuntimeError, match=why):
        fresh_load(SOURCE)
    monkeypatch.setenv("CXX", "g++")
    with pytest.raises(RuntimeError, match=why):  # not asked again
        fresh_load(SOURCE)
