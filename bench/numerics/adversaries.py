"""Operands that are hard for a block whose widest tensors do not exist, as rows of a table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.bottleneck.forms import NAMES, BlockOperands
from kernels.kernel import Shape
from kernels.table import BLOCKS_BY_NAME

Change = Callable[[Tensor], Tensor]
Changes = Mapping[str, Change]  # of operands by their names, see `BlockOperands.named`


@dataclass(frozen=True, slots=True, kw_only=True)
class Adversary:
    """Hard operands: a form, how its random operands are changed, and the gradient of its result."""

    name: str
    why: str  # it is hard
    changes: Changes = field(default_factory=dict)
    form: str = "bottleneck"
    shape: Shape = (4, 64, 8, 8)
    mean: float = 1.0  # of the gradient of the result,
    size: float = 1.0  # and by what it is multiplied
    guards: tuple[str, ...] = ()  # of `bench.numerics.guards.GUARDS`, that it is handled by
    limit: str = ""  # what the scheme does worse than eager, and why; the block's result is right all the same

    def operands(self, dtype: torch.dtype, device: str = "cpu") -> BlockOperands:
        """The operands after their changes; filters are rounded to dtype again, as those of `BlockForm.make` are."""
        plain = BLOCKS_BY_NAME[self.form].make(self.shape, dtype, device)

        def changed(name: str, old: Tensor) -> Tensor:
            if name not in self.changes:
                return old
            new = self.changes[name](old.detach().clone())
            return (new.to(dtype).to(old.dtype) if new.dim() > 1 else new).requires_grad_()

        filters = tuple(changed(f"filters{name}", tensor) for name, tensor in zip(NAMES, plain.filters, strict=False))
        norms = []
        for name, norm in zip(NAMES, plain.norms, strict=False):
            assert norm.weight is not None and norm.bias is not None  # noqa: S101, PT018 - forms make both
            weight, bias = changed(f"weight{name}", norm.weight), changed(f"bias{name}", norm.bias)
            norms.append(norm._replace(weight=weight, bias=bias))
        return plain._replace(x=changed("x", plain.x), filters=filters, norms=tuple(norms))


def _assigned(part: slice, value: float) -> Change:
    """A change that puts one value into a part of a tensor."""

    def change(tensor: Tensor) -> Tensor:
        tensor[part] = value
        return tensor

    return change


def _multiplied(factor: float) -> Change:
    return lambda tensor: tensor * factor


def _shifted(by: float) -> Change:
    return lambda tensor: tensor + by


def _collinear(filters: Tensor) -> Tensor:
    filters[1::2] = 2 * filters[::2]
    return filters


def _in_pairs(tensor: Tensor) -> Tensor:
    """Every second row is a copy of the one before."""
    tensor[1::2] = tensor[::2]
    return tensor


def _of_even_channels(filters: Tensor) -> Tensor:
    """Half of the filters look at even channels alone."""
    filters[::2, 1::2] = 0
    return filters


def _thrice_a_hundred(tensor: Tensor) -> Tensor:
    """A hundred times as large, and every second value three times the one before."""
    tensor[1::2] = 3 * tensor[::2]
    return 100 * tensor


def _differences(filters: Tensor) -> Tensor:
    """Half of the filters take three times a channel less the next; few digits, so that three times is exact."""
    filters[::2, 1::2] = (16 * filters[::2, 1::2]).round() / 16
    filters[::2, ::2] = -3 * filters[::2, 1::2]
    return filters


def _largest(value: float) -> Change:
    return lambda x: x * (value / x.max())


EVERY_SECOND = slice(None, None, 2)


def _far(ratio: float) -> Adversary:
    return Adversary(
        name=f"y2 with a mean of {ratio:.0f} deviations",
        why="sum y y^T / rows - m m^T cancels",
        changes={"weight2": lambda weight: weight / 100, "bias2": lambda bias: 0 * bias + ratio / 100},
        guards=("centre",),
    )


ADVERSARIES: tuple[Adversary, ...] = (
    _far(1e2),
    _far(1e3),
    _far(1e4),
    Adversary(
        name="x with a mean of 100 deviations, projected",
        why="the same, of the input of the projection",
        changes={"x": _shifted(100.0)},
        form="bottleneck+projection",
        shape=(4, 32, 8, 8),
        guards=("centre",),
    ),
    Adversary(
        name="nothing special, projected",
        why="y - centre has more digits than 16 bits hold",
        form="bottleneck+projection",
        shape=(4, 32, 8, 8),
        guards=("digits of the centre",),
    ),
    Adversary(
        name="dead channels",
        why="half of y2 is zero everywhere",
        changes={"bias2": _assigned(EVERY_SECOND, -100.0)},
    ),
    Adversary(
        name="constant channels",
        why="half of y2 does not vary, and half of conv3's filters look at nothing else: variances are zero",
        changes={
            "weight2": _assigned(EVERY_SECOND, 0.0),
            "bias2": _assigned(EVERY_SECOND, 0.75),
            "filters3": _of_even_channels,
        },
    ),
    Adversary(
        name="collinear filters",
        why="every second filter of conv3 is twice the one before",
        changes={"filters3": _collinear},
    ),
    Adversary(
        name="filters orthogonal to all variation",
        why="every second channel of y2, of some hundreds, is three times the one before, and half of conv3's filters "
        "take three times the one less the other: variances are those of rounding",
        changes={
            "filters2": _in_pairs,
            "weight2": _thrice_a_hundred,
            "bias2": _thrice_a_hundred,
            "filters3": _differences,
        },
        guards=("least variance",),
        limit="what is left of such a variance in fp32 is the rounding of its terms, and gradients through these "
        "filters are divided by its root; at 16 bits a W, rounded, no longer takes such channels against each other",
    ),
    Adversary(
        name="gamma = 0", why="half of bn3's weights are zero", changes={"weight3": _assigned(EVERY_SECOND, 0.0)}
    ),
    Adversary(name="huge gamma", why="bn3's weights are around 1000", changes={"weight3": _multiplied(1e3)}, size=1e-2),
    Adversary(
        name="huge gamma of filters that hardly vary",
        why="a W leaves the range of fp16, whereas eager's gradient of conv3's result, a D, does not",
        changes={
            "weight2": _assigned(EVERY_SECOND, 0.0),
            "bias2": _assigned(EVERY_SECOND, 0.75),
            "filters3": _of_even_channels,
            "weight3": _assigned(EVERY_SECOND, 1e4),
        },
        size=1e-4,
        guards=("unscale",),
    ),
    Adversary(
        name="small gradient",
        why="H is as small as the gradient, which is 1e-4",
        size=1e-4,
    ),
    Adversary(
        name="x near the largest fp16",
        why="x is up to 6e4; conv1 makes it smaller",
        changes={"x": _largest(6e4), "filters1": _multiplied(1e-2)},
    ),
    Adversary(
        name="x near the largest fp16, projected",
        why="its squares, 3.6e9, are summed; conv1 and the projection make it smaller",
        changes={"x": _largest(6e4), "filters1": _multiplied(1e-2), "filters of the projection": _multiplied(1e-2)},
        form="bottleneck+projection",
        shape=(4, 32, 8, 8),
        guards=("unscale",),
    ),
    Adversary(name="four rows", why="a channel has four values", shape=(4, 64, 1, 1)),
    Adversary(
        name="constant input",
        why="bn1 normalises channels that do not vary",
        changes={"x": _assigned(slice(None), 0.75)},
    ),
    Adversary(
        name="gradient of one sign",
        why="the mean of the result's gradient is ten deviations: what its BatchNorms take away is nearly all of it",
        mean=10.0,
        guards=("mean of the gradient", "diagonal of H"),
    ),
)
