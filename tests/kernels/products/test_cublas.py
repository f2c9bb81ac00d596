"""Products by a library, where the tables say so: as near to fp64 as ours, and counted alike."""

import pytest
import torch

from kernels.bottleneck.forms import BlockOperands
from kernels.launch.runtime import Call, recorded
from kernels.products import tiles
from kernels.products.cublas import CUBLAS
from kernels.products.tiles import Choice, Product
from tests.support.gram_cases import CASES, V1, dtypes, form_of, operands_of, violations


class Always(dict[Product, Choice]):
    """A table that says so of every product."""

    def get(self, *_: object) -> Choice:
        return "library"


@pytest.fixture
def by_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "SEARCHED", Always())


def launched(case: str, operands: BlockOperands) -> list[Call]:
    with recorded() as calls:
        y = form_of(case).run(operands, True)
        torch.autograd.grad(y, operands.differentiable(), torch.empty_like(y))
    return calls


@pytest.mark.usefixtures("one_thread", "by_library")
@pytest.mark.parametrize("case", CASES)
@dtypes
def test_a_block_is_as_near_to_fp64_as_eager(case: str, dtype: torch.dtype) -> None:
    assert violations(form_of(case), operands_of(case, dtype)) == []


@pytest.mark.usefixtures("by_library")
@pytest.mark.parametrize("case", CASES)
def test_a_library_computes_what_it_can_and_as_much(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first convolution and its filters' gradient; at a stride it would have to copy pixels."""
    operands = operands_of(case, torch.bfloat16)
    by_library = [call for call in launched(case, operands) if call.kernel is CUBLAS]
    assert len(by_library) == (0 if case == V1 else 2)
    monkeypatch.setattr(tiles, "SEARCHED", {})
    ours = [call for call in launched(case, operands) if call.chosen_for in {of.chosen_for for of in by_library}]
    assert [of.budget.flops for of in ours if of.budget] == [of.budget.flops for of in by_library if of.budget]


def test_nothing_is_by_a_library_unless_a_table_says_so() -> None:
    assert all(call.kernel is not CUBLAS for call in launched("bottleneck", operands_of("bottleneck")))
