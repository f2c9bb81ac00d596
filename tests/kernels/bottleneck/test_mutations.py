"""More wrong formulas, planted as in `test_gram_mutations`: those that need other operands than parity in fp64 has.

Where it is rounded and scaled (at 16 bits), in evaluation, behind a closed ReLU, at unusual strides and layouts.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from bench.kernels.operands import mapped
from bench.kernels.parity import error
from kernels.bottleneck.forms import BlockForm
from kernels.kernel import Shape
from tests.kernels.bottleneck import test_op as test_bottleneck_op
from tests.kernels.products import test_products
from tests.support.gram_cases import EXACT, FP64, V1, operands_of, violations
from tests.support.gram_mutants import changed

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of NaN and infinity in the interpreter
]

Check = Callable[[ModuleType], None]  # of the table of forms
FP16 = torch.float16
TOLERANCE = 1e-12 if FP64 else 1e-5
PATCH = object()  # stands for the `MonkeyPatch` of a check
SHAPE: Shape = (3, 20, 7, 8)
IDENTITY, PROJECTION, DOWNSAMPLING = "bottleneck", "bottleneck+projection", "bottleneck+downsampling"


def form_of(forms: ModuleType, case: str) -> BlockForm:
    by_name: dict[str, BlockForm] = {form.name: form for form in forms.BLOCKS}
    return by_name[case.partition(",")[0]]


@cache  # a check runs once over a copy without a mutation
def parity(case: str, dtype: torch.dtype = EXACT) -> Check:
    def check(forms: ModuleType) -> None:
        assert violations(form_of(forms, case), operands_of(case, dtype, SHAPE)) == []

    return check


@cache
def evaluation(case: str) -> Check:
    def check(forms: ModuleType) -> None:
        form, operands = form_of(forms, case), operands_of(case, EXACT, SHAPE)
        with torch.no_grad():
            assert error(form.run(operands, False), form.oracle(mapped(operands, Tensor.double), False)) < TOLERANCE

    return check


FROM = {  # what `test_products` takes from the kernels
    "covariance": "gram.covariance", "plans": "products.plans",
    "block_end": "products.block_end.block_end", "Branch": "products.block_end.Branch",
    "conv_statistics": "products.conv_statistics.conv_statistics", "gram_source": "gram.covariance.gram_source",
    "result_statistics": "gram.statistics.result_statistics",
}  # fmt: skip


def of_kernel(test: Callable[..., None], *given: object) -> Check:
    """A test of `test_products` over the copies of the kernels, with a `MonkeyPatch` or other arguments."""

    def check(forms: ModuleType) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, place in FROM.items():
                patch.setattr(test_products, name, pkgutil.resolve_name(f"{forms.__name__.split('.')[0]}.{place}"))
            test(*(patch if argument is PATCH else argument for argument in given))

    return check


def of_op(test: Callable[[], None]) -> Check:
    """A test of `test_bottleneck_op` over the copy of the forms."""

    def check(forms: ModuleType) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(test_bottleneck_op, "form_of", lambda case: form_of(forms, case))
            test()

    return check


def layouts(forms: ModuleType) -> None:
    of_op(lambda: test_bottleneck_op.test_filters_may_lie_in_memory_as_they_like(test_bottleneck_op.transposed))(forms)


def own_eps(forms: ModuleType) -> None:
    of_op(lambda: test_bottleneck_op.test_each_batch_norm_has_an_eps_of_its_own(PROJECTION))(forms)


def closed_relu(forms: ModuleType) -> None:
    of_op(lambda: test_bottleneck_op.test_a_gradient_that_is_no_number_stays_behind_a_closed_relu(IDENTITY))(forms)


def stride_three(forms: ModuleType) -> None:
    of_op(lambda: test_bottleneck_op.test_unusual_shapes_and_strides("stride three"))(forms)


rounded_once = of_kernel(
    test_products.test_the_end_of_a_block_is_rounded_once_where_eager_is_rounded_more_often, FP16, False
)
mask_bits = of_kernel(test_products.test_a_mask_has_a_bit_for_each_value_that_the_relu_let_pass)
mask_of_zero = of_kernel(test_products.test_what_is_rounded_to_zero_does_not_pass)
short_run = of_kernel(test_products.test_a_run_shorter_than_a_tile_has_statistics_around_its_own_mean, PATCH)
least_variance = of_kernel(test_products.test_no_variance_is_smaller_than_rounding_can_tell)
blocks_of_blocks = of_kernel(
    test_products.test_blocks_of_a_covariance_lie_within_several_blocks_of_the_gram_matrix, EXACT, 1, PATCH
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """Text of a module, what stands there instead, and the check that sees it."""

    why: str
    module: str
    old: str
    new: str
    check: Check


MUTATIONS = (
    # at 16 bits
    Mutation(
        why="a W is not scaled back", module="gram.inner_gradient",
        old="product *= tl.load(unscale_ptr) / tl.load(unscale_ptr + 1)", new="product /= tl.load(unscale_ptr + 1)",
        check=parity(PROJECTION, FP16),
    ),
    Mutation(
        why="H is not scaled back", module="gram.inner_gradient",
        old="product *= tl.load(unscale_ptr + 1)", new="product *= 1.0", check=parity(PROJECTION, FP16),
    ),
    Mutation(
        why="h takes the mean by an a W that is too large", module="gram.backward",
        old="(mean / larger)[:, None]", new="mean[:, None]", check=parity(PROJECTION, FP16),
    ),
    Mutation(
        why="what does not exist is rounded", module="products.block_end",
        old="y = on_line(y, result_line_ptr, columns, N)",
        new="y = on_line(y.to(out_ptr.dtype.element_ty).to(acc), result_line_ptr, columns, N)", check=rounded_once,
    ),
    Mutation(
        why="the ReLU sees what is not rounded yet",
        module="products.block_end", old="active = kept(out)", new="active = kept(y)", check=mask_of_zero,
    ),
    # masks
    Mutation(
        why="bits behind the last channel are set",
        module="products.block_end", old="active = kept(out)", new="active = kept(out) | (columns >= N)[None, :]",
        check=mask_bits,
    ),
    Mutation(
        why="each block of columns writes the bits of the first", module="products.block_end",
        old="packed = tl.program_id(0) * (BLOCK_COLUMNS // 8) + tl", new="packed = tl", check=mask_bits,
    ),
    Mutation(
        why="each block of columns reads the bits of the first",
        module="products.operands", old="packed = first // 8 + tl", new="packed = tl", check=parity(PROJECTION),
    ),
    Mutation(
        why="a closed ReLU multiplies by zero", module="products.operands",
        old="tl.where(unpack_bits(bits, BLOCK_ROWS, BLOCK_CHANNELS) != 0, dy, 0.0)",
        new="dy * unpack_bits(bits, BLOCK_ROWS, BLOCK_CHANNELS).to(dy.dtype)", check=closed_relu,
    ),
    # strides, evaluation
    Mutation(
        why="strides are two", module="products.operands",
        old="(h % STRIDE == 0) & (w % STRIDE == 0)", new="(h % 2 == 0) & (w % 2 == 0)", check=stride_three,
    ),
    Mutation(
        why="the gradient of the shortcut goes where that of the convolution goes", module="products.input_gradient",
        old="source_width, SKIP_STRIDE)", new="source_width, STRIDE)", check=parity(DOWNSAMPLING),
    ),
    Mutation(
        why="in evaluation the stride is always in the second convolution", module="bottleneck.inference",
        old="Branch(x, first_stride,", new="Branch(x, 1,", check=evaluation(V1),
    ),
    Mutation(
        why="in evaluation bn2 is left out", module="bottleneck.inference",
        old="Branch(x2, 1, lines[CONV2],", new="Branch(x2, 1, None,", check=evaluation(IDENTITY),
    ),
    Mutation(
        why="in evaluation the projection has bn3", module="bottleneck.inference",
        old="lines[PROJECTION])", new="lines[CONV3])", check=evaluation(PROJECTION),
    ),
    # layouts, options
    Mutation(
        why="gradients of conv1 are put in the strides of transposed filters", module="bottleneck.backward",
        old="self.filters[CONV1].contiguous())\n", new="self.filters[CONV1])\n", check=layouts,
    ),
    Mutation(
        why="gradients of conv3 are put in the strides of transposed filters",
        module="gram.backward", old="torch.empty_like(parameter.contiguous())", new="torch.empty_like(parameter)",
        check=layouts,
    ),
    Mutation(
        why="transposed filters are multiplied as they lie", module="bottleneck.forward",
        old="multiplied[CONV3].contiguous()", new="multiplied[CONV3]", check=layouts,
    ),
    Mutation(
        why="in the backward pass bn3 has the eps of bn2", module="gram.backward",
        old="source.pixels.rows, columns, channels, splits, sums.shape[0],\n        EPS=norm.eps",
        new="source.pixels.rows, columns, channels, splits, sums.shape[0],\n        EPS=1e-2", check=own_eps,
    ),
    # sums and factors
    Mutation(
        why="a short run's pivot is that of a whole tile", module="products.conv_statistics",
        old="tl.minimum(last - first, BLOCK_ROWS)", new="tl.maximum(last - first, BLOCK_ROWS)", check=short_run,
    ),
    Mutation(
        why="a variance may be as small as it comes out",
        module="gram.statistics", old="ROUNDING * terms * terms", new="0.0 * terms", check=least_variance,
    ),
    Mutation(
        why="blocks of the covariance are counted as those of the Gram matrix", module="gram.covariance",
        old="tl.program_id(0) * BLOCK // GRAM_BLOCK > tl.program_id(1) * BLOCK // GRAM_BLOCK",
        new="tl.program_id(0) // GRAM_BLOCK > tl.program_id(1) // GRAM_BLOCK", check=blocks_of_blocks,
    ),
    Mutation(
        why="a strided Gram matrix is that of the first pixels", module="gram.covariance",
        old="source = source_rows(tile_rows, pixels, width, source_pixels, source_width, STRIDE)",
        new="source = tile_rows",
        check=of_kernel(
            test_products.test_blocks_of_a_covariance_lie_within_several_blocks_of_the_gram_matrix, EXACT, 2, PATCH
        ),
    ),
    Mutation(
        why="the variance is the unbiased one", module="gram.covariance",
        old="tl.reshape(product, [BLOCK, BLOCK]) / count", new="tl.reshape(product, [BLOCK, BLOCK]) / (count - 1)",
        check=parity(IDENTITY),
    ),
    Mutation(
        why="splits of the sums of the gradient are written over each other", module="products.filter_gradient",
        old="sums_ptr + split * N + filters", new="sums_ptr + filters", check=parity(IDENTITY),
    ),
    Mutation(
        why="H lacks the weight of bn3", module="gram.backward",
        old="slope = scale * rstd * dweight", new="slope = rstd * rstd * dweight", check=parity(IDENTITY),
    ),
    Mutation(
        why="h lacks the mean of y", module="gram.backward",
        old="2 * N + filters, slope * moved", new="2 * N + filters, 0.0 * moved", check=parity(IDENTITY),
    ),
    Mutation(
        why="the diagonal of H is applied twice", module="gram.backward",
        old="product = tl.where(channels[:, None] == columns[None, :], 0.0, product)", new="product += 0.0",
        check=parity(IDENTITY),
    ),
)  # fmt: skip


def test_a_copy_without_a_mutation_passes_every_check(tmp_path: Path) -> None:
    with changed(tmp_path) as forms:
        for check in dict.fromkeys(mutation.check for mutation in MUTATIONS):
            check(forms)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.why)
def test_a_mutation_is_seen(mutation: Mutation, tmp_path: Path) -> None:
    with changed(tmp_path, mutation.module, mutation.old, mutation.new) as forms, pytest.raises(AssertionError):
        mutation.check(forms)
