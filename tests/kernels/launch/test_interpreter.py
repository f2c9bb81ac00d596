"""Triton's interpreter, as `kernels.launch.interpreter` mends it: conversions are bit for bit those of torch."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.bottleneck.forms import BLOCKS, BlockForm
from kernels.kernel import Kernel
from kernels.launch.runtime import INTERPRETED
from kernels.table import KERNELS
from tests.support import bn_cases, gram_cases, quick_interpreter
from tests.support.gram_cases import dtypes
from tests.support.processes import PATIENCE_S
from tests.support.repository import ROOT

pytestmark = [
    pytest.mark.skipif(not INTERPRETED, reason="a device converts by itself"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of NaN and infinity
]

BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def copy(out_ptr, x_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N803
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at, mask=at < n).to(out_ptr.dtype.element_ty), mask=at < n)


@triton.jit  # type: ignore[untyped-decorator]
def multiply(out_ptr, a_ptr, b_ptr, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N803
    side = tl.arange(0, SIDE)
    at = side[:, None] * SIDE + side[None, :]
    product = tl.load(out_ptr + at)
    product = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at), product, input_precision="ieee")
    tl.store(out_ptr + at, product)


def converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty_like(x, dtype=dtype)
    copy[(triton.cdiv(x.numel(), BLOCK),)](out, x, x.numel(), BLOCK=BLOCK)
    return out


def fp32(bits: np.ndarray) -> Tensor:
    return torch.from_numpy(bits.astype(np.uint32).view(np.float32).copy())


def every_bf16() -> Tensor:
    return torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)


def assert_same(found: Tensor, wanted: Tensor) -> None:
    """The same bits; a NaN is a NaN, whichever."""
    assert torch.equal(found.isnan(), wanted.isnan())
    numbers = ~wanted.isnan()
    integer = torch.int16 if wanted.dtype == torch.bfloat16 else torch.int32
    assert torch.equal(found.view(integer)[numbers], wanted.view(integer)[numbers])


RANDOM = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64)
UPPER = np.arange(2**16, dtype=np.uint64) << np.uint64(16)  # every bf16
PATTERNS = {
    "random bits": RANDOM,
    "halfway between two bf16": UPPER | np.uint64(0x8000),
    "just above halfway": UPPER | np.uint64(0x8001),
    "just below halfway": UPPER | np.uint64(0x7FFF),
    "bf16 already": UPPER,
    "subnormal": RANDOM & np.uint64(0x807FFFFF),
    "infinite or NaN": RANDOM | np.uint64(0x7F800000),
    "largest and smallest": np.array([0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0, 0x80000000, 1], np.uint64),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_to_bf16_rounds_to_nearest_even(name: str) -> None:
    x = fp32(PATTERNS[name])
    assert_same(converted(x, torch.bfloat16), x.to(torch.bfloat16))


def test_to_bf16_rounds_half_of_all_halves_up() -> None:
    """That the patterns above tell rounding from truncation, which the interpreter does by itself."""
    x = fp32(PATTERNS["halfway between two bf16"])
    truncated = fp32(UPPER).to(torch.bfloat16)
    finite = x.isfinite()
    assert (converted(x, torch.bfloat16) != truncated)[finite].float().mean() == pytest.approx(0.5, abs=0.01)


def test_from_bf16_is_exact() -> None:
    x = every_bf16()
    assert_same(converted(x, torch.float32), x.float())


@pytest.mark.parametrize("shape", [(5, 7), (1,), (3, 1, 2)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert_same(converted(x, torch.bfloat16), x.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_conversions_are_as_they_were(dtype: torch.dtype) -> None:
    x = torch.randn(1000)
    assert torch.equal(converted(x, dtype), x.to(dtype))
    assert torch.equal(converted(x.to(dtype), torch.float32), x.to(dtype).float())


@dtypes
def test_products_of_matrices_are_added_in_the_precision_of_the_sum(dtype: torch.dtype) -> None:
    """As they are by itself the interpreter multiplies the bits of bf16 as integers."""
    a, b = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    out = torch.ones(32, 32, dtype=sums)
    multiply[(1,)](out, a, b, SIDE=32)
    torch.testing.assert_close(out.double(), 1 + a.double() @ b.double(), rtol=0, atol=128 * torch.finfo(sums).eps)


AFTER_TRITON = """
import sys
assert "triton" in sys.modules and "kernels" not in sys.modules
import torch
from kernels.table import KERNELS
for kernel in KERNELS:
    operands = kernel.make((2, 8, 6, 6), torch.float64, "cpu")
    torch.testing.assert_close(kernel.run(operands, True), kernel.oracle(operands, True))
"""


@pytest.mark.parametrize("first", ["torchvision", "triton", "torch._inductor"])
def test_kernels_are_interpreted_whatever_has_imported_triton_before(first: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = f"import {first}{AFTER_TRITON}"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", [*KERNELS, BLOCKS[-1]], ids=lambda form: form.name)
def test_the_hurry_of_the_tests_changes_no_bit(
    form: Kernel | BlockForm, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def results() -> dict[str, Tensor]:
        if isinstance(form, Kernel):
            return bn_cases.results(form.run, bn_cases.operands_of(form, (2, 11, 4, 5), dtype), True)
        return gram_cases.results(form.run, gram_cases.operands_of(form.name, dtype, (2, 12, 4, 5)), dtype)

    found = results()
    for owner, name, original in quick_interpreter.ORIGINALS:
        assert getattr(owner, name) is not original
        monkeypatch.setattr(owner, name, original)
    for name, wanted in results().items():
        assert torch.equal(found[name], wanted), name
