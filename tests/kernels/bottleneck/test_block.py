"""A bottleneck block as one op: parity of every result, what autograd asks of it, what it keeps and what it skips."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.kernels.operands import mapped
from bench.kernels.parity import error
from kernels.bottleneck import forward as module
from kernels.bottleneck.forms import BlockOperands
from kernels.bottleneck.forward import bottleneck
from kernels.kernel import Norm
from kernels.launch.runtime import INTERPRETED, recorded
from tests.support.exhaustive import exhaustive
from tests.support.gram_cases import (
    BY_NAME,
    CASES,
    DEVICE,
    EXACT,
    FLOORS,
    FP64,
    SHAPE,
    TIMES,
    V1,
    dtypes,
    form_of,
    gradient_like,
    operands_of,
    results,
    small_products,  # noqa: F401 - a fixture
    violations,
)

cases = pytest.mark.parametrize("case", CASES)
one_of_all = ["bottleneck", *exhaustive(*(name for name in BY_NAME if name != "bottleneck"))]

pytestmark = pytest.mark.usefixtures("one_thread")


@cases
@dtypes
def test_training_is_as_near_to_fp64_as_eager(case: str, dtype: torch.dtype) -> None:
    assert violations(form_of(case), operands_of(case, dtype)) == []


@pytest.mark.parametrize("case", [V1, *exhaustive(*(case for case in CASES if case != V1))])
@pytest.mark.usefixtures("small_products")
def test_training_over_many_runs_splits_and_blocks(case: str) -> None:
    assert violations(form_of(case), operands_of(case, EXACT, (3, 24, 5, 6))) == []


@cases
@dtypes
def test_evaluation_is_as_near_to_fp64_as_eager(case: str, dtype: torch.dtype) -> None:
    form, operands = form_of(case), operands_of(case, dtype)
    with torch.no_grad():
        wanted = form.oracle(mapped(operands, Tensor.double), False)
        mine, its = (error(run(operands, False), wanted) for run in (form.run, form.oracle))
    assert mine <= max(TIMES[dtype] * its, FLOORS[dtype])


@cases
def test_statistics_are_those_of_what_each_batch_norm_takes(case: str) -> None:
    operands = operands_of(case, EXACT)
    seen: list[Tensor] = []

    def noted(x: Tensor, *args: Any, **options: Any) -> Tensor:  # noqa: ANN401 - passed on
        seen.append(x)
        return batch_norm(x, *args, **options)

    batch_norm = torch.nn.functional.batch_norm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "batch_norm", noted)
        form_of(case).oracle(operands, True)
    _, statistics = bottleneck(*operands)
    assert len(statistics) == len(seen) == len(operands.norms)
    tolerance = 1e-10 if FP64 else 1e-4
    for found, x in zip(statistics, seen, strict=True):
        var, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
        torch.testing.assert_close(found, torch.stack((mean, var)), rtol=tolerance, atol=tolerance)


@dtypes
def test_what_is_kept_and_what_is_made_again_are_the_same_bits(dtype: torch.dtype) -> None:
    operands = operands_of("bottleneck+projection", dtype)

    def run(keep: bool) -> dict[str, Tensor]:
        return results(lambda given, _: bottleneck(*given, keep=keep)[0], operands, dtype)

    kept, rebuilt, again = run(True), run(False), run(False)
    for name, value in kept.items():
        assert torch.equal(value, rebuilt[name]), name
        assert torch.equal(value, again[name]), name


def test_other_memory_formats_are_copied() -> None:
    operands = operands_of("bottleneck")
    x = operands.x.detach().contiguous().requires_grad_()
    assert not x.is_contiguous(memory_format=torch.channels_last)
    assert violations(form_of("bottleneck"), operands._replace(x=x)) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parameters_of_low_precision_are_those_values_and_get_gradients_of_it(dtype: torch.dtype) -> None:
    """What model.half() makes."""
    low = mapped(operands_of("bottleneck+downsampling", dtype), lambda tensor: tensor.to(dtype))
    same = mapped(low, lambda tensor: tensor if tensor.dim() == 4 and tensor.shape[2] > 3 else tensor.float())
    found, wanted = (results(form_of("bottleneck").run, each, dtype) for each in (low, same))
    assert {value.dtype for name, value in wanted.items() if name not in ("x", "y")} == {torch.float32}
    for name, value in wanted.items():
        assert torch.equal(found[name], value.to(dtype)), name


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_reaches_every_channel(value: float) -> None:
    """A convolution mixes channels, and statistics mix pixels: no value of the result is to be trusted."""
    operands = operands_of("bottleneck")
    with torch.no_grad():
        operands.x[1, 3, 2, 2] = value
    found = results(form_of("bottleneck").run, operands, torch.float32)
    for name in ("x", "filters1", "filters2", "filters3", "weight1"):
        assert not found[name].isfinite().all(), name


@pytest.mark.skipif(not FP64, reason="differences of fp32 tell nothing")
@pytest.mark.parametrize("case", one_of_all)
def test_the_gradients_are_those_of_finite_differences(case: str) -> None:
    operands = operands_of(case, torch.float64, (2, 8, 3, 4), seed=3)
    leaves = operands.named()

    def run(*tensors: Tensor) -> Tensor:
        return form_of(case).run(with_tensors(operands, dict(zip(leaves, tensors, strict=True))), True)

    inputs = [leaf.detach().clone().requires_grad_() for leaf in leaves.values()]
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)


def with_tensors(operands: BlockOperands, tensors: dict[str, Tensor]) -> BlockOperands:
    """The operands with some of `BlockOperands.named` replaced."""
    by_id = {id(old): tensors[name] for name, old in operands.named().items() if name in tensors}

    def new(old: Tensor) -> Tensor:
        return by_id.get(id(old), old)

    filters = tuple(new(of) for of in operands.filters)

    def new_norm(norm: Norm) -> Norm:
        assert norm.weight is not None
        assert norm.bias is not None
        return norm._replace(weight=new(norm.weight), bias=new(norm.bias))

    return BlockOperands(new(operands.x), filters, tuple(map(new_norm, operands.norms)), operands.geometry)


def test_a_second_derivative_is_refused_in_words() -> None:
    operands = operands_of("bottleneck")
    y = form_of("bottleneck").run(operands, True)
    (dx,) = torch.autograd.grad(y, operands.x, gradient_like(y, y.dtype).requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        dx.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("case", one_of_all)
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "rebuilt"])
def test_the_op_keeps_the_rules_of_ops(case: str, keep: bool) -> None:
    x, filters, norms, geometry = operands_of(case, shape=(2, 16, 4, 4))
    weights, biases, eps = ([norm[place] for norm in norms] for place in (0, 1, 4))
    arguments = (x, list(filters), weights, biases, eps, *geometry, keep, True)
    torch.library.opcheck(module._bottleneck, arguments)


# What is frozen.


FROZEN: dict[str, tuple[str, ...]] = {  # launches that are not needed where only these require a gradient
    "x": (),
    "filters3": ("_inner_filters", "_inner_gradient", "_gradient", "_reduce", "_input_gradient"),
    "weight2": ("_reduce", "_input_gradient"),
    "filters2": ("_reduce", "_input_gradient"),
    "bias1": ("_input_gradient",),
    "filters1": ("_input_gradient",),
    "weight of the projection": ("_inner_filters", "_inner_gradient", "_gradient", "_reduce", "_input_gradient"),
}


@pytest.mark.parametrize("wanted", FROZEN)
def test_what_leads_to_nothing_wanted_is_not_computed(wanted: str) -> None:
    case = "bottleneck+projection"
    with recorded("sm_90") as every:
        complete = operands_of_meta(case)
        y = form_of(case).run(complete, True)
        torch.autograd.grad(y, complete.differentiable(), torch.empty_like(y))
    operands = operands_of_meta(case)
    for name, leaf in operands.named().items():
        leaf.requires_grad_(name == wanted)
    with recorded("sm_90") as calls:
        y = form_of(case).run(operands, True)
        torch.autograd.grad(y, operands.differentiable(), torch.empty_like(y))
    launched, needed = ([call.kernel.__name__ for call in of] for of in (calls, every))
    assert set(FROZEN[wanted]) <= set(needed)
    assert not set(FROZEN[wanted]) & set(launched)
    assert set(needed) - set(FROZEN[wanted]) <= set(launched)


def operands_of_meta(case: str) -> BlockOperands:
    return form_of(case).make(SHAPE, torch.bfloat16, "meta")


@pytest.mark.parametrize("wanted", [name for name in FROZEN if name != "x"])
def test_the_gradients_of_what_is_not_frozen_are_the_same_bits(wanted: str) -> None:
    case = "bottleneck+projection"
    complete = results(form_of(case).run, operands_of(case), torch.float32)
    operands = operands_of(case)
    for name, leaf in operands.named().items():
        leaf.requires_grad_(name == wanted)
    found = results(form_of(case).run, operands, torch.float32)
    assert found.keys() == {"y", wanted}
    assert torch.equal(found[wanted], complete[wanted])


# What is kept for the backward pass.


@pytest.mark.parametrize("case", BY_NAME)
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "rebuilt"])
def test_bytes_that_are_kept_for_the_backward_pass(case: str, keep: bool) -> None:
    """x, x1, x2, a bit for each value of the result, y1 if asked for; and nothing else that has rows."""
    dtype = torch.bfloat16
    operands = operands_of(case, dtype)
    parameters = {tensor.untyped_storage().data_ptr() for tensor in operands.differentiable()[1:]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if tensor.numel() and address not in parameters:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = bottleneck(*operands, keep=keep)
    n, channels, height, width = operands.x.shape
    inside, outside = operands.filters[0].shape[0], y.shape[1]
    rows, result_rows = n * height * width, y.numel() // outside
    activations = 2 * (rows * (channels + inside * (1 + keep)) + result_rows * inside)
    mask = result_rows * -(-outside // 8)
    # statistics of three BatchNorms, bn2 as a line, and for each product its source's moments and filters @ covariance
    vectors = 4 * (2 * inside + 2 * inside + 2 * outside + 3 * inside + 2 * inside + outside * inside)
    if len(operands.filters) > 3:
        vectors += 4 * (2 * outside + 2 * channels + outside * channels)
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) == activations + mask + vectors


def test_nothing_is_kept_where_nothing_is_differentiated() -> None:
    operands = operands_of("bottleneck")
    with torch.no_grad(), recorded() if not INTERPRETED else recorded("interpreter") as calls:
        form_of("bottleneck").run(operands, True)
    ends = [call for call in calls if call.kernel.__name__ == "_block_end"]
    mask = [call.arguments[call.kernel.arg_names.index("mask_ptr")] for call in ends]
    assert mask == [None]
    assert DEVICE in str(operands.x.device)
