"""What the tests of bottleneck blocks share: operands, results by name, errors against fp64, and small tiles."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.kernels.operands import mapped
from bench.kernels.parity import error
from kernels.bottleneck.forms import BLOCKS, BlockForm, BlockOperands
from kernels.gram import backward, covariance, statistics
from kernels.kernel import Shape
from kernels.launch import runtime
from kernels.products import plans
from kernels.products.plans import multiplies
from kernels.products.tiles import ProductTile
from tests.support.exhaustive import exhaustive

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP64 = multiplies(torch.float64)
EXACT = torch.float64 if FP64 else torch.float32  # the most that kernels multiply
DTYPES = tuple(dict.fromkeys((EXACT, torch.float16, torch.float32, torch.bfloat16)))
dtypes = pytest.mark.parametrize("dtype", [*DTYPES[:2], *exhaustive(*DTYPES[2:])], ids=str)
BY_NAME = {form.name: form for form in BLOCKS}
V1 = "bottleneck+downsampling, v1"  # the stride in the first convolution
GROUPED = "bottleneck+downsampling, grouped"
CASES = (*BY_NAME, V1, GROUPED)
SHAPE: Shape = (4, 24, 9, 10)  # no multiple of a tile anywhere

Run = Callable[[BlockOperands, bool], Tensor]

# error <= max(times * eager's, floor), as in `bench.parity.verdict`. At 16 bits a value within rounding of zero may
# change sides of a ReLU, in one program and not in another: `bench.kernels.parity.error` sets the few largest
# differences aside, and the multiplier is for the others. The floors are some units of rounding, where eager is lucky.
TIMES = {torch.float64: 4.0, torch.float32: 4.0, torch.bfloat16: 3.0, torch.float16: 3.0}
FLOORS = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def form_of(case: str) -> BlockForm:
    return BY_NAME[case.partition(",")[0]]


def operands_of(case: str, dtype: torch.dtype = torch.float32, shape: Shape = SHAPE, seed: int = 0) -> BlockOperands:
    operands = form_of(case).make(shape, dtype, DEVICE, seed=seed, groups=4 if case == GROUPED else 1)
    if case == V1:
        geometry = operands.geometry._replace(first_stride=2, stride=[1, 1])
        operands = operands._replace(geometry=geometry)
    return operands


def gradient_like(y: Tensor, dtype: torch.dtype) -> Tensor:
    """With a mean, or the terms with sums over all rows would hardly count; the same for every dtype of y."""
    generator = torch.Generator(y.device).manual_seed(1234)
    return (torch.randn(y.shape, generator=generator, device=y.device) + 0.5).to(dtype).to(y.dtype)


def results(run: Run, operands: BlockOperands, dtype: torch.dtype) -> dict[str, Tensor]:
    """y and the gradient of everything that requires one, in training; dtype: that the gradient of y has values of."""
    y = run(operands, True)
    gradients = torch.autograd.grad(y, operands.differentiable(), gradient_like(y, dtype))
    return {"y": y.detach()} | dict(zip(operands.named(), gradients, strict=True))


def violations(form: BlockForm, operands: BlockOperands, run: Run | None = None) -> list[str]:
    """The results that are further from fp64 than they may be, each with its error and eager's."""
    dtype = operands.x.dtype
    exact = mapped(operands, Tensor.double)
    wanted = results(form.oracle, exact, dtype)
    eager, found = (results(each, operands, dtype) for each in (form.oracle, run or form.run))
    wrong = []
    for name, ref in wanted.items():
        mine, its = error(found[name], ref), error(eager[name], ref)
        if not mine <= max(TIMES[dtype] * its, FLOORS[dtype]):
            wrong.append(f"{name}: error {mine:.2e}, eager's {its:.2e}")
    return wrong


@pytest.fixture
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many runs, splits and blocks, the last of each partial, as large tensors have them."""
    tile = ProductTile(rows=16, columns=16, inner=16, num_warps=1, num_stages=1)
    monkeypatch.setattr(plans, "product_tile", lambda _: tile)
    interpreter = runtime.ARCHITECTURES["interpreter"]
    monkeypatch.setitem(runtime.ARCHITECTURES, "interpreter", replace(interpreter, multiprocessors=40))
    for module in (covariance, backward, statistics):
        monkeypatch.setattr(module, "small_block", lambda _most, _of, interpreted=16: min(16, interpreted))
