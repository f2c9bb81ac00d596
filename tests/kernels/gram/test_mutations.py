"""Wrong formulas, planted in copies of the kernels of bottleneck blocks: parity of whole blocks has to see each.

As in `test_bn_mutations`: a mutant is a copy of the modules in which one text is replaced, with ops of its own.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.gram_cases import EXACT, V1, operands_of, violations
from tests.support.gram_mutants import changed

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of NaN and infinity in the interpreter
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """What is wrong, in which module, and where parity has to see it."""

    why: str
    module: str
    old: str
    new: str
    case: str = "bottleneck"


PROJECTION, DOWNSAMPLING = "bottleneck+projection", "bottleneck+downsampling"
MUTATIONS = (
    Mutation(why="runs are not shifted back", module="products.conv_statistics", old="pivot + shift", new="pivot"),
    Mutation(
        why="squares keep the shift",
        module="products.conv_statistics", old="squares - shift * shift * count", new="squares",
    ),
    Mutation(
        why="rows outside count in the statistics",
        module="products.conv_statistics", old="tl.where(inside_rows[:, None], value - pivot[None, :], 0.0)",
        new="value - pivot[None, :]",
    ),
    Mutation(
        why="a strided convolution takes other lines",
        module="products.operands", old="within // width * STRIDE * source_width", new="within // width * source_width",
        case=DOWNSAMPLING,
    ),
    Mutation(
        why="the gradient of a strided shortcut lands on every line",
        module="products.operands", old="(h % STRIDE == 0) & (w % STRIDE == 0)", new="w % STRIDE == 0",
        case=DOWNSAMPLING,
    ),
    Mutation(
        why="a strided first convolution hands its gradient to the wrong lines",
        module="products.input_gradient",
        old="output, taken = spread_rows(tile_rows, pixels, width, source_pixels, source_width, STRIDE)",
        new="output, taken = spread_rows(tile_rows, pixels, width, source_pixels, source_width, 1)", case=V1,
    ),
    Mutation(why="the inner ReLU is left out", module="products.operands", old="tl.where(kept(y), y, 0.0)", new="y"),
    Mutation(
        why="the mean is that of the sample alone",
        module="gram.statistics", old="(centre + offset)[None, :]", new="centre[None, :]",
    ),
    Mutation(
        why="the covariance is not freed of the offset",
        module="gram.covariance", old=" - offset_i[:, None] * offset_j[None, :]", new="",
    ),
    Mutation(
        why="blocks of the Gram matrix behind the diagonal are read as they lie",
        module="gram.covariance", old="gram_indices = j[None, :] * C + i[:, None]", new="gram_indices = indices",
        case=PROJECTION,
    ),
    Mutation(
        why="sums of channels are those of another split",
        module="gram.covariance", old="sums_ptr + split * C + channels_i", new="sums_ptr + channels_i",
    ),
    Mutation(
        why="bn3 forgets its bias",
        module="gram.statistics", old="shift_of(bias_ptr, mean, filters, N)", new="0.0 * mean",
    ),
    Mutation(
        why="the mask is not applied",
        module="products.operands", old="tl.where(unpack_bits(bits, BLOCK_ROWS, BLOCK_CHANNELS) != 0, dy, 0.0)",
        new="dy",
    ),
    Mutation(
        why="the shortcut is forgotten", module="products.block_end",
        old="y += tl.load(shortcut_ptr + offsets, mask=inside, other=0.0).to(acc)", new="y += 0.0",
    ),
    Mutation(
        why="the projected shortcut is not normalised", module="products.block_end",
        old="z = on_line(z, z_result_line_ptr, columns, N)", new="z = z * 1.0", case=PROJECTION,
    ),
    Mutation(
        why="the gradient of filters forgets the centre",
        module="gram.backward", old="product - total[:, None] * offset[None, :]", new="product",
    ),
    Mutation(
        why="the gradient of filters forgets the variance",
        module="gram.backward", old=" - (dweight * rstd)[:, None] * varied", new="",
    ),
    Mutation(
        why="the gradient of the weight forgets the mean",
        module="gram.backward", old="rstd * (along - total * moved)", new="rstd * along",
    ),
    Mutation(
        why="the gradient of the weight lacks 1 / std",
        module="gram.backward", old="dweight = rstd * (", new="dweight = (",
    ),
    Mutation(
        why="H has the wrong sign", module="gram.backward",
        old="(-larger_h * product)", new="(larger_h * product)", case=PROJECTION,
    ),
    Mutation(
        why="the diagonal of H is forgotten", module="gram.inner_gradient",
        old="g -= (y.to(acc) - centre[None, :]) * diagonal[None, :]", new="g -= 0.0 * centre[None, :]",
    ),
    Mutation(
        why="h forgets the mean of the gradient",
        module="gram.backward", old=" - (mean / larger)[:, None] * scaled.to(acc)", new="",
    ),
    Mutation(
        why="two convolutions share one number of splits", module="gram.backward",
        old="merged(sums_ptr, filters, valid, N, sum_splits, MERGED)",
        new="merged(sums_ptr, filters, valid, N, splits, MERGED)", case=DOWNSAMPLING,
    ),
    Mutation(
        why="the gradient of y passes where the ReLU was closed", module="gram.inner_gradient",
        old="tl.where(inside & kept(y), g, 0.0)", new="tl.where(inside, g, 0.0)",
    ),
    Mutation(
        why="bn2's sum along x is not centred", module="gram.inner_gradient",
        old="(x.to(acc) - mean[None, :])", new="x.to(acc)",
    ),
    Mutation(
        why="the skip gradient is forgotten", module="products.input_gradient",
        old="dx += skip.to(ACC)", new="dx += 0.0",
    ),
    Mutation(
        why="y1 is rebuilt without its ReLU", module="bottleneck.backward",
        old="training=False, relu=True", new="training=False, relu=False",
    ),
)  # fmt: skip


def wrong(forms: ModuleType, case: str) -> list[str]:
    form = next(form for form in forms.BLOCKS if form.name == case.partition(",")[0])
    return violations(form, operands_of(case, EXACT, (3, 20, 7, 8)))


@pytest.mark.parametrize("case", ["bottleneck", PROJECTION, DOWNSAMPLING, V1])
def test_a_copy_without_a_mutation_passes(case: str, tmp_path: Path) -> None:
    with changed(tmp_path) as forms:
        assert wrong(forms, case) == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.why)
def test_a_mutation_is_seen(mutation: Mutation, tmp_path: Path) -> None:
    with changed(tmp_path, mutation.module, mutation.old, mutation.new) as forms:
        assert wrong(forms, mutation.case) != []
