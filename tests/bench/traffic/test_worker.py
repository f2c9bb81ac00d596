"""Traffic: blocks counted by hand for every scheme, and what is seen of a network that runs without data."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.measure.cost import cost
from bench.traffic import worker
from bench.traffic.schemes import all_schemes
from bench.traffic.steps import covered, step
from bench.traffic.types import Operation
from bench.types import Mode
from tests.support.traffic_cases import MODEL, few_bottlenecks, request  # noqa: F401 - the second is a fixture

pytestmark = pytest.mark.usefixtures("flags_restored", "few_bottlenecks")


def of_block(scheme: str, mode: Mode = "train", **other: Any) -> list[Operation]:  # noqa: ANN401 - the other fields
    """What the identity block of the first stage does."""
    (found,) = worker.count(request(scheme, mode=mode, **other))
    return list(found.parts()["layer1.1"].operations)


# --- a block by hand --------------------------------------------------------------------------------------------------

# layer1.1 at batch 8 and 64 px, bf16: 16x16 pixels, 256 -> 64 -> 64 -> 256 channels
NARROW = 8 * 16 * 16 * 64 * 2  # x1, y1, x2, y2
WIDE = 4 * NARROW  # the input, x3, the result
MASK = WIDE // 16  # a bit of 16
FILTERS = {"conv1": 2 * 256 * 64, "conv2": 2 * 64 * 64 * 9, "conv3": 2 * 64 * 256}
PRODUCTS = {name: size * 8 * 16 * 16 for name, size in FILTERS.items()}  # FLOPs: 2 a pixel and weight

CONVOLUTIONS = 2 * (WIDE + NARROW) + 2 * NARROW + sum(FILTERS.values())  # each reads, multiplies and writes once
DERIVED = 2 * CONVOLUTIONS  # two products each, of tensors of the same sizes


def test_the_formula_of_inductor_by_hand() -> None:
    forward = (
        CONVOLUTIONS
        + 2 * NARROW + WIDE  # statistics
        + 2 * 2 * NARROW  # normalise: R x, W y
        + 3 * WIDE  # R x3, R shortcut, W out
    )  # fmt: skip
    backward = (
        DERIVED
        + 5 * WIDE  # end, sums: R 2 gradients, R out, R x3, W their sum behind the ReLU
        + 3 * WIDE  # end, gradient: R that sum, R x3, W dx3
        + 2 * 3 * NARROW  # sums: R dy, R y, R x
        + 2 * 4 * NARROW  # gradient: R dy, R y, R x, W dx
    )  # fmt: skip
    found = of_block("inductor")
    assert sum(of.bytes for of in found if of.direction == "forward") == forward
    # followed by a projection: two convolutions take its result, and their gradients are added up here
    assert sum(of.bytes for of in found if of.direction == "backward") == backward
    inference = forward - 2 * NARROW - WIDE
    assert sum(of.bytes for of in of_block("inductor", "infer")) == inference


def test_the_formula_of_cudnn_by_hand() -> None:
    forward = CONVOLUTIONS + 3 * WIDE + MASK  # R x3, R shortcut, W out, W mask
    backward = (
        DERIVED
        + WIDE + MASK + WIDE  # end, on the way out of the next product: R the other gradient, R mask, R x3
        + 3 * WIDE  # end, gradient: R the sum, R x3, W dx3
        + 2 * NARROW  # on the way out of conv3's and of conv2's input gradient: R x2, R x1
        + 2 * 3 * NARROW  # gradient: R g, R x, W dx
    )  # fmt: skip
    found = of_block("cudnn-fused")
    assert sum(of.bytes for of in found if of.direction == "forward") == forward
    assert sum(of.bytes for of in found if of.direction == "backward") == backward


def test_the_formula_of_the_folded_network_by_hand() -> None:
    assert sum(of.bytes for of in of_block("folded", "infer")) == CONVOLUTIONS + WIDE  # R shortcut


def test_what_products_of_our_own_save_in_inference() -> None:
    """Each projection is neither written nor read, and a chained convolution reads no input: where that is narrow."""
    projections = {"layer1.0": 2 * WIDE, "layer2.0": WIDE, "layer3.0": WIDE // 2, "layer4.0": WIDE // 4}
    chains = {"layer1.1": WIDE, "layer2.0": WIDE}
    for precision, width, chained in (("bf16", 1, chains), ("fp32", 2, {})):  # threads multiply fp32: no chain
        folded, products = worker.count(request("folded", "folded-triton", mode="infer", precision=precision))
        saved = {part: of.bytes - products.parts()[part].bytes for part, of in folded.parts().items()}
        names = ["layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0"]
        assert {part: of for part, of in saved.items() if of} == {
            part: width * (projections.get(part, 0) + chained.get(part, 0))
            for part in names
            if part in projections or part in chained
        }
        assert folded.flops == products.flops


def test_the_convolutions_of_a_block_with_a_stride_by_hand() -> None:
    """layer2.0: 256 channels of 16x16 pixels, 128 inside, 512 of 8x8."""
    pixels = 8 * 16 * 16 * 2  # bytes of a channel
    wide, inner, strided, out = 256 * pixels, 128 * pixels, 128 * pixels // 4, 512 * pixels // 4
    first, middle, last, projection = 2 * 256 * 128, 2 * 128 * 128 * 9, 2 * 128 * 512, 2 * 256 * 512
    forward = (
        (wide + first + inner)
        + (inner + middle + strided)
        + (strided + last + out)
        + (wide // 4 + projection + out)  # of its input the pixels at even places
    )  # fmt: skip
    backward = 2 * forward + 3 * wide // 4  # the gradient of the projection's input is written at all places
    for scheme, kind in (("eager", "convolution"), ("inductor", ": product"), ("cudnn-fused", ": product")):
        (found,) = worker.count(request(scheme))
        block = found.parts()["layer2.0"].operations
        assert sum(of.bytes for of in block if of.direction == "forward" and kind in of.name) == forward
        if scheme != "cudnn-fused":  # whose products do more than multiply
            gradients = [of for of in block if of.name.endswith(("input gradient", "filter gradient"))]
            assert sum(of.bytes for of in gradients) == backward


VECTORS = 3e-2  # of a block's bytes: statistics, parameters, partial sums over few rows


def close(found: int, wanted: int) -> None:
    assert wanted <= found < wanted * (1 + VECTORS)


def test_eager_by_hand() -> None:
    forward = (
        CONVOLUTIONS
        + 2 * 3 * NARROW + 3 * WIDE  # BatchNorm: R x twice, W y
        + 2 * 2 * NARROW + 2 * WIDE  # ReLU in place
        + 3 * WIDE  # out += shortcut
    )  # fmt: skip
    backward = (
        DERIVED
        + 2 * 3 * NARROW + 3 * WIDE  # ReLU: R dy, R y, W dx
        + 2 * 5 * NARROW + 5 * WIDE  # BatchNorm: R dy and x twice, W dx
        + 3 * WIDE  # the sum of the two gradients of the block's input
    )  # fmt: skip
    found = of_block("eager")
    close(sum(of.bytes for of in found if of.direction == "forward"), forward)
    close(sum(of.bytes for of in found if of.direction == "backward"), backward)
    inference = CONVOLUTIONS + 2 * 2 * NARROW + 2 * WIDE + 2 * 2 * NARROW + 2 * WIDE + 3 * WIDE
    close(sum(of.bytes for of in of_block("eager", "infer")), inference)


@pytest.mark.parametrize("rebuild", [False, True], ids=["y1 is kept", "y1 is made again"])
def test_the_gram_scheme_by_hand(rebuild: bool) -> None:
    """The touches that kernels/bottleneck/forward.py states, and what has no rows: filters and partial sums in fp32."""
    size: dict[str, Any] = {"batch_size": 64, "image_size": 224}  # many rows
    rows = 64 * 56 * 56 / (8 * 16 * 16)
    forward = (
        (WIDE + NARROW) + 2 * NARROW + 2 * NARROW  # conv1 with statistics; bn1; conv2
        + NARROW + NARROW  # bn2's statistics, Gram matrix
        + NARROW + WIDE + WIDE + MASK  # the end: R x2, R shortcut, W out, W mask
    ) * rows  # fmt: skip
    backward = (
        (WIDE + MASK + NARROW) + (WIDE + MASK + 2 * NARROW)  # P; bn2's gradient behind conv3
        + 3 * NARROW + 4 * NARROW  # bn2: R g, R x2, W dx2; conv2: R dx2 twice, R y1, W dy1
        + 5 * NARROW  # bn1: R dy1, R x1 twice, W dx1
        + (NARROW + WIDE + MASK + WIDE) + (NARROW + WIDE)  # conv1
        + (2 * NARROW if rebuild else 0)
    ) * rows  # fmt: skip
    found = of_block("gram-rebuild" if rebuild else "gram", **size)
    close(sum(of.bytes for of in found if of.direction == "forward"), round(forward))
    close(sum(of.bytes for of in found if of.direction == "backward"), round(backward))
    inference = (WIDE + NARROW + 2 * NARROW + NARROW + 2 * WIDE) * rows
    close(sum(of.bytes for of in of_block("gram", "infer", **size)), round(inference))


def test_flops_by_hand() -> None:
    gram = 2 * 8 * 16 * 16 * 64 * 64  # of y2 with itself; behind it dy2 takes as many once more
    small = 4 * 256 * 64 * 64  # W cov, and W^T diag W
    for scheme in ("eager", "inductor", "cudnn-fused", "triton"):
        assert sum(of.flops for of in of_block(scheme)) == 3 * sum(PRODUCTS.values())
    assert sum(of.flops for of in of_block("gram")) == 3 * sum(PRODUCTS.values()) + 2 * gram + small


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_flops_of_the_network_are_those_of_limits(mode: Mode) -> None:
    schemes = [of for of in all_schemes(mode) if not of.startswith("gram")]
    for found in worker.count(request(*schemes, mode=mode)):
        assert found.flops == cost(MODEL, mode, "bf16", 8, 64).flops


def test_a_strided_1x1_convolution_reads_the_pixels_that_it_takes() -> None:
    x = torch.empty(2, 8, 16, 16, device="meta", dtype=torch.float16)
    sizes = {(1, 1): x.nbytes, (1, 2): x.nbytes // 4, (3, 2): x.nbytes, (2, 3): round(x.nbytes * 4 / 9)}
    for (window, stride), read in sizes.items():
        assert covered(x, x.new_empty(4, 8, window, window), [stride, stride]) == read


# --- what is seen -----------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A network in name, around one module."""

    def __init__(self, inside: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Identity())
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(self.layer1(x))


@pytest.mark.parametrize(("inside", "names", "touched"), [
    (lambda x: x.view(-1).detach(), [], 0),
    (lambda x: torch.empty_like(x), [], 0),  # noqa: PLW0108 - names are looked at
    (lambda x: x + 1, ["add"], 2),
    (lambda x: x.clone().add_(x), ["clone", "add_"], 5),
    (lambda x: x.contiguous(memory_format=torch.channels_last), ["clone"], 2),
    (lambda x: x.contiguous(), [], 0),
    (lambda x: x[:1].expand(4, -1, -1, -1) * 2, ["mul"], 1 / 4 + 1),
])  # fmt: skip
def test_what_ops_move(inside: Callable[[Tensor], Tensor], names: list[str], touched: float) -> None:
    x = torch.empty(4, 8, 6, 6, device="meta")
    found = step(Odd(inside), x, train=False)
    assert [of.name for of in found] == names
    assert sum(of.bytes for of in found) == touched * x.nbytes


def test_operations_belong_to_parts_and_add_up() -> None:
    names = ["stem", "layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0", "head"]
    for found in worker.count(request(*all_schemes("train"))):
        parts = found.parts()
        assert list(parts) == names
        assert sum(part.bytes for part in parts.values()) == found.bytes == sum(of.bytes for of in found.operations)
        assert sum(part.flops for part in parts.values()) == found.flops
        backward = [of.part for of in found.operations if of.direction == "backward"]
        assert list(dict.fromkeys(backward)) == names[::-1]


def test_bytes_follow_the_batch_and_the_precision() -> None:
    for scheme in ("eager", "inductor", "cudnn-fused"):
        (one,), (two,), (wide,) = (
            worker.count(request(scheme, **of)) for of in ({}, {"batch_size": 16}, {"precision": "fp32"})
        )
        assert one.bytes < two.bytes < 2 * one.bytes  # filters are read once
        assert 1.9 * one.bytes < wide.bytes <= 2 * one.bytes  # places of maxima and masks stay
