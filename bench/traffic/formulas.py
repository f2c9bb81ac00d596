"""Bytes and FLOPs of schemes that cannot be run without data, by formulas over layers. Standard library only.

A formula lists the operations of a part of a network, with the tensors that each reads and writes; how large they are
comes from the network (`bench.traffic.worker.parts`). Tensors of one value per channel (statistics, parameters, partial
sums) are left out.
Convolutions read their input and filters and write their result; their two gradients are two products, each of which
reads the result's gradient.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

BIT = 1 / 8  # byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A convolution or the linear layer: bytes of its tensors at the step's batch and precision."""

    name: str
    inputs: int
    read: int  # of the inputs: at a stride larger than its windows a convolution takes some of the pixels
    outputs: int
    weights: int
    flops: int
    width: int  # bytes of an element
    differentiates_inputs: bool = True  # not those of the images


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a network, with its layers in order."""

    name: str
    kind: Literal["stem", "block", "head"]
    layers: tuple[Layer, ...]
    projection: Layer | None = None  # of a block whose shortcut is projected
    consumers: int = 1  # of the part's result: as many gradients arrive and are added up
    ends_in_product: bool = False  # a block whose last convolution is 1x1
    chained: bool = False  # its first convolution can be computed by the kernel that ends the block before
    pooled: int = 0  # bytes of the stem's result behind its pooling, if it pools, or of what the head pools

    @property
    def inputs(self) -> int:
        return self.layers[0].inputs

    @property
    def convolutions(self) -> tuple[Layer, ...]:
        return self.layers if self.projection is None else (*self.layers, self.projection)

    @property
    def pools(self) -> bool:
        """Whether this is a stem with max-pooling behind it."""
        return self.kind == "stem" and self.pooled > 0

    @property
    def shortcut(self) -> int:
        """Bytes of what is added at the end of a block: the projection's result, or the block's input."""
        if self.kind != "block":
            return 0
        return self.inputs if self.projection is None else self.projection.outputs


Counts = Iterator[tuple[str, float, int]]  # name, bytes and FLOPs of each operation
Formula = Callable[[Part], Counts]


def convolution(layer: Layer) -> tuple[str, float, int]:
    return f"{layer.name}: product", layer.read + layer.weights + layer.outputs, layer.flops


def gradients(layer: Layer, *, ending: float = 0) -> Counts:
    """Both gradients of a layer. `ending`: bytes read by what is done with the input gradient on its way out."""
    if layer.differentiates_inputs:
        yield f"{layer.name}: input gradient", layer.outputs + layer.weights + layer.inputs + ending, layer.flops
    yield f"{layer.name}: filter gradient", layer.outputs + layer.read + layer.weights, layer.flops


# --- Inductor: convolutions are a library's, everything between two of them is fused into few passes ------------------


def inductor_forward(part: Part) -> Counts:
    """BatchNorm's statistics are a pass of their own; the next normalises, adds the shortcut and applies the ReLU."""
    if part.kind == "head":
        yield from head_forward(part)
        return
    *inner, last = part.layers
    for layer in part.convolutions:
        yield convolution(layer)
        yield f"{layer.name}: statistics", layer.outputs, 0
    for layer in inner:
        yield f"{layer.name}: normalise", 2 * layer.outputs, 0
    if part.pools:
        yield f"{last.name}: normalise", 2 * last.outputs, 0
        yield "max-pooling", last.outputs + part.pooled + part.pooled / last.width, 0  # places: a byte an element
    else:
        yield "normalise and add", 2 * last.outputs + part.shortcut, 0


def inductor_inference(part: Part) -> Counts:
    """The forward pass of training, without statistics and without the places of maxima."""
    for name, moved, flops in inductor_forward(part):
        if name == "max-pooling":
            yield name, part.layers[-1].outputs + part.pooled, flops
        elif not name.endswith("statistics"):
            yield name, moved, flops


def inductor_backward(part: Part) -> Counts:
    """Two passes a BatchNorm, both with its ReLU: sums, then the gradient. The ReLU's mask is read off its result."""
    if part.kind == "head":
        yield from head_backward(part)
        return
    *inner, last = part.layers
    if part.pools:
        yield "max-pooling: gradient", (part.consumers + 1 / last.width) * part.pooled + last.outputs, 0
        inner = [last]
    else:
        normalised = last.outputs if part.projection is None else 2 * last.outputs
        # reads the gradients that arrive, the block's result and what was normalised; writes the gradient of the sum
        yield "end: sums", (part.consumers + 2) * last.outputs + normalised, 0
        yield "end: gradient", last.outputs + 2 * normalised, 0
        yield from gradients(last)
    for layer in reversed(inner):
        yield f"{layer.name}: sums", 3 * layer.outputs, 0
        yield f"{layer.name}: normalisation's gradient", 4 * layer.outputs, 0
        yield from gradients(layer)
    if part.projection is not None:
        yield from gradients(part.projection)


# --- cuDNN's fused graphs: normalisation rides in the prologue of a product, statistics in its epilogue ---------------


def fused_forward(part: Part) -> Counts:
    """Normalised tensors inside a block are never written: only its end is, where the shortcut is added."""
    if part.kind == "head":
        yield from head_forward(part)
        return
    for layer in part.convolutions:
        yield convolution(layer)
    last = part.layers[-1]
    if part.pools:
        yield "normalise and max-pooling", last.outputs + part.pooled + part.pooled / last.width, 0
    else:
        yield "normalise and add", (2 + BIT / last.width) * last.outputs + part.shortcut, 0


def fused_backward(part: Part) -> Counts:
    """The sums that a BatchNorm needs are taken where its result's gradient is made; applying them is a pass."""
    if part.kind == "head":
        yield from head_backward(part)
        return
    *inner, last = part.layers
    if part.pools:
        yield "max-pooling: gradient and sums", (part.consumers + 1 / last.width) * part.pooled + 2 * last.outputs, 0
        yield f"{last.name}: normalisation's gradient", 3 * last.outputs, 0
        yield from gradients(last)
        return
    mask = BIT / last.width * last.outputs
    normalised = last.outputs if part.projection is None else 2 * last.outputs
    if part.consumers == 1:  # reads the gradient that arrives, the mask and what was normalised; writes that of the sum
        yield "end: sums", 2 * last.outputs + mask + normalised, 0
    else:  # the same on the way out of the next block's input gradient, where the other gradients are added
        yield "end: sums, in the next product", (part.consumers - 1) * last.outputs + mask + normalised, 0
    yield "end: gradient", last.outputs + 2 * normalised, 0
    for layer, before in zip(reversed(part.layers), [*reversed(inner), None], strict=True):
        # on the way out of an inner product: the ReLU and the sums of the BatchNorm before, whose input is read
        yield from gradients(layer, ending=before.outputs if before else 0)
        if before is not None:
            yield f"{before.name}: normalisation's gradient", 3 * before.outputs, 0
    if part.projection is not None:
        yield from gradients(part.projection)


# --- BatchNorm folded into the convolutions ---------------------------------------------------------------------------


def folded_forward(part: Part) -> Counts:
    """Each convolution adds its bias and the shortcut and applies the ReLU on its way out."""
    if part.kind == "head":
        yield from head_forward(part)
        return
    for layer in part.convolutions:
        name, moved, flops = convolution(layer)
        ends = part.kind == "block" and layer is part.layers[-1]
        yield name, moved + (part.shortcut if ends else 0), flops
    if part.pools:
        yield "max-pooling", part.layers[-1].outputs + part.pooled, 0


def products_forward(part: Part) -> Counts:
    """One product ends a block, projected shortcut included; where it can, it computes the next block's first too."""
    if not part.ends_in_product:
        yield from folded_forward(part)
        return
    first, *inner, last = part.layers
    if part.chained:  # it takes from registers what the block before writes
        yield f"{first.name}: product, chained", first.weights + first.outputs, first.flops
    else:
        yield convolution(first)
    yield from map(convolution, inner)
    _, moved, flops = convolution(last)
    if part.projection is None:
        yield "end: product", moved + part.inputs, flops
    else:
        yield "end: product", moved + part.projection.read + part.projection.weights, flops + part.projection.flops


# --- the same everywhere ----------------------------------------------------------------------------------------------


def head_forward(part: Part) -> Counts:
    (linear,) = part.layers
    yield "average pooling", part.pooled + linear.inputs, 0
    yield convolution(linear)


def head_backward(part: Part) -> Counts:
    (linear,) = part.layers
    yield from gradients(linear)
    yield "average pooling: gradient", linear.inputs + part.pooled, 0
