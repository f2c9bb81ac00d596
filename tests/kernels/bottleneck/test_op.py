"""A bottleneck block where torch hands it more than ordinary operands: other strides, small shapes, other uses."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from kernels.bottleneck.forms import BlockOperands
from kernels.bottleneck.forward import bottleneck
from kernels.gram import covariance
from kernels.kernel import Shape
from tests.support.gram_cases import (
    BY_NAME,
    CASES,
    EXACT,
    FP64,
    form_of,
    gradient_like,
    operands_of,
    results,
    small_products,  # noqa: F401 - a fixture
    violations,
)

CLOSE = 1e-9 if FP64 else 1e-3
SMALL: Shape = (3, 12, 5, 6)

pytestmark = pytest.mark.usefixtures("one_thread")


# Shapes and strides that no network of ours has.


class Odd(NamedTuple):
    """A shape of x, and what is unusual about the convolutions."""

    form: str
    shape: Shape
    geometry: dict[str, Any]


DOWNSAMPLING = "bottleneck+downsampling"
ODDS = {
    "a single pixel": Odd("bottleneck", (9, 8, 1, 1), {}),
    "a single line": Odd("bottleneck+projection", (4, 8, 1, 7), {}),
    "two channels inside": Odd("bottleneck", (4, 8, 5, 3), {}),
    "bits that fill no byte": Odd("bottleneck", (4, 20, 4, 5), {}),
    "stride three": Odd(DOWNSAMPLING, (4, 12, 7, 8), {"stride": [3, 3], "projection_stride": 3}),
    "a stride over all pixels": Odd(DOWNSAMPLING, (9, 8, 2, 2), {"stride": [3, 3], "projection_stride": 3}),
    "stride three first": Odd(DOWNSAMPLING, (4, 12, 7, 8), {
        "first_stride": 3, "stride": [1, 1], "projection_stride": 3,
    }),
    "dilated": Odd("bottleneck", (4, 16, 5, 6), {"padding": [2, 2], "dilation": [2, 2]}),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODDS)
@pytest.mark.usefixtures("small_products")
def test_unusual_shapes_and_strides(odd: str) -> None:
    form, shape, changes = ODDS[odd]
    operands = operands_of(form, EXACT, shape)
    operands = operands._replace(geometry=operands.geometry._replace(**changes))
    assert violations(form_of(form), operands) == []


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [*([EXACT] if FP64 else []), torch.bfloat16], ids=str)
def test_the_mean_of_a_few_rows_is_as_good_a_centre(
    case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many more rows, that is: so far from the mean over all that every term with the difference counts."""
    monkeypatch.setattr(covariance, "SAMPLED_ROWS", 4)
    assert violations(form_of(case), operands_of(case, dtype)) == []


@pytest.mark.parametrize("case", BY_NAME)
def test_each_batch_norm_has_an_eps_of_its_own(case: str) -> None:
    operands = operands_of(case, EXACT, SMALL)
    norms = zip(operands.norms, (1e-3, 1e-2, 0.1, 1.0), strict=False)
    operands = operands._replace(norms=tuple(norm._replace(eps=eps) for norm, eps in norms))
    assert violations(form_of(case), operands) == []


# Layouts.


def transposed(filters: Tensor) -> Tensor:
    """The same values, the columns of the matrix contiguous."""
    values = filters.detach()
    return values.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()


def sliced(filters: Tensor) -> Tensor:
    """The same values, with others between its rows."""
    wide = torch.cat((filters.detach(), torch.ones_like(filters)), dim=1)
    return wide[:, : filters.shape[1]].requires_grad_()


@pytest.mark.parametrize("laid_out", [transposed, sliced])
def test_filters_may_lie_in_memory_as_they_like(laid_out: Any) -> None:  # noqa: ANN401 - a function
    operands = operands_of(DOWNSAMPLING, EXACT, SMALL)
    others = operands._replace(filters=tuple(map(laid_out, operands.filters)))
    assert not any(filters.is_contiguous() for filters in others.filters)
    wanted, found = (results(form_of(DOWNSAMPLING).run, each, EXACT) for each in (operands, others))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_of_1x1_filters_are_laid_out_as_the_filters(memory_format: torch.memory_format) -> None:
    """Else DistributedDataParallel copies them; and x is channels_last for the block before."""
    operands = operands_of(DOWNSAMPLING, torch.bfloat16, SMALL)
    leaves = tuple(of.detach().contiguous(memory_format=memory_format).requires_grad_() for of in operands.filters)
    operands = operands._replace(filters=leaves)
    found = results(form_of(DOWNSAMPLING).run, operands, torch.bfloat16)
    for name, leaf in operands.named().items():
        assert (found[name].shape, found[name].dtype) == (leaf.shape, leaf.dtype), name
        if leaf.shape[2:] == (1, 1):
            assert found[name].stride() == leaf.stride(), name
    assert found["x"].is_contiguous(memory_format=torch.channels_last)
    assert found["y"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_the_result_may_lie_in_memory_as_it_likes(case: str) -> None:
    operands = operands_of(case, EXACT, (2, 16, 4, 5))
    y = form_of(case).run(operands, True)

    def gradients(dy: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(y, operands.differentiable(), dy, retain_graph=True))

    dy = gradient_like(y, EXACT)[:, :, :1, :1].expand_as(y)
    assert 0 in dy.stride()
    wanted = gradients(dy.contiguous(memory_format=torch.channels_last))
    for other in (dy, dy.contiguous()):
        assert all(map(torch.equal, gradients(other), wanted))


# Uses.


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_that_is_no_number_stays_behind_a_closed_relu(case: str) -> None:
    """As in eager: NaN times zero would be NaN."""
    operands = operands_of(case, shape=(2, 16, 4, 5))
    y = form_of(case).run(operands, True)
    closed = y.detach() == 0
    assert closed.any()
    found, wanted = (
        torch.autograd.grad(
            y, operands.differentiable(), gradient_like(y, y.dtype).masked_fill(closed, value), retain_graph=True
        )
        for value in (float("nan"), 0.0)
    )
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("case", BY_NAME)
def test_without_gradients_the_result_is_the_same_bits(case: str) -> None:
    operands = operands_of(case, torch.bfloat16)
    y, statistics = bottleneck(*operands)
    with torch.no_grad():
        again, its_statistics = bottleneck(*operands)
    assert y.requires_grad
    assert not again.requires_grad
    assert torch.equal(y, again)
    assert all(map(torch.equal, statistics, its_statistics))
    assert not any(of.requires_grad for of in statistics)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "rebuilt"])
def test_what_is_kept_outlives_a_backward_pass_and_a_changed_result(keep: bool) -> None:
    """A ReLU in place behind the block, say; but not a changed x, which the backward pass reads."""
    operands = operands_of("bottleneck+projection", shape=(2, 8, 4, 5))
    scale = torch.ones((), requires_grad=True)
    given = operands._replace(x=operands.x * scale)

    def backward(y: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(y, operands.differentiable(), gradient_like(y, y.dtype), retain_graph=True))

    y, _ = bottleneck(*given, keep=keep)
    wanted = backward(y)
    assert all(map(torch.equal, backward(y), wanted))
    y.mul_(2.0)
    assert all(torch.equal(found, 2 * of) for found, of in zip(backward(y), wanted, strict=True))
    given.x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        backward(y)


def test_a_block_behind_itself_has_the_gradients_of_both() -> None:
    """Parameters that are used twice."""
    form = form_of("bottleneck")
    operands = operands_of("bottleneck", EXACT, SMALL)

    def twice(run: Any, given: BlockOperands) -> dict[str, Tensor]:  # noqa: ANN401 - a function
        return results(lambda first, training: run(first._replace(x=run(first, training)), training), given, EXACT)

    found, wanted = (twice(run, operands) for run in (form.run, form.oracle))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=CLOSE, atol=CLOSE)
