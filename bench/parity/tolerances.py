"""The errors against fp64 that a path may have, by precision and kind of tensor."""

import re
from dataclasses import dataclass
from math import sqrt

from bench.types import Case
from resnet.models.table import network_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """The errors against fp64 that a path may have at one precision."""

    multiplier: float
    forward: float  # floor for what the first forward pass makes: output, loss and buffers of step 1
    backward: float  # floor for gradients, and for everything that they have moved


# Another order of summation or another rounding point moves an error by a small factor, never by orders of magnitude.
# The floors are for tensors where eager happens to be lucky, a scalar loss above all: a few units of rounding of the
# precision's products, after the accumulation over some tens of layers.
TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(multiplier=4.0, forward=1e-4, backward=1e-4),
    "tf32": Tolerance(multiplier=3.0, forward=5e-3, backward=2e-2),  # 10-bit mantissa: unit roundoff 4.9e-4
    "fp16": Tolerance(multiplier=3.0, forward=5e-3, backward=2e-2),  # 10-bit mantissa: unit roundoff 4.9e-4
    "bf16": Tolerance(multiplier=3.0, forward=2e-2, backward=5e-2),  # 7-bit mantissa: unit roundoff 3.9e-3
}
# Where a value lies within rounding of zero, two right programs may put it on different sides of the ReLU. One such
# flip among the n values of a ReLU of the last stages moves everything that a backward pass has touched, in one of the
# programs and not in the other. The floors, by kind of tensor in units of 1 / sqrt(n), were set by trial, not derived:
# about twice the largest error by which right paths of resnet18 and resnet50 were seen to differ. Least of all moves
# the part along a gradient, for a flip has no direction of its own.
FLIPS = {"grad": 16.0, "param": 16.0, "buffer": 2.0, "output": 1.0, "loss": 1.0, "scale": 2.0}
CEILING = 0.9  # whatever eager's error: a gradient left out has an error of 1


def tolerance(tensor: str, eager_error: float, case: Case, values: int) -> float:
    """The largest error of `tensor` that passes, beside eager's; `values` is what `last_stage_values` gives."""
    limit = TOLERANCES[case.precision]
    kind = re.split("[:@]", tensor)[0]
    before_backward = tensor.endswith("@1") and kind in {"output", "loss", "buffer"}
    forward = case.mode == "infer" or before_backward
    floor = limit.forward if forward else max(limit.backward, FLIPS[kind] / sqrt(values))
    return min(max(limit.multiplier * eager_error, floor), CEILING)


def last_stage_values(case: Case, batch_size: int) -> int:
    """The number of values that a ReLU inside a block of the last stage returns, the fewest of all: N * H * W * C."""
    network = network_of(case.model)
    return network.last_stage(batch_size, case.image_size) * network.width
