"""The results of `bench.numerics.worker`, as frozen data. Imports no torch."""

from dataclasses import dataclass
from math import exp, fsum, inf, log, sqrt

from bench.kernels.types import Dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """An error passes up to max(times * eager's, floor)."""

    times: float
    floor: float


# Other points of rounding and another order of summation move an error by a small factor; in fp32 a larger one, for
# eager on a CPU takes a BatchNorm's sums over all rows in fp64. Where eager is lucky, what a single rounding costs
# passes, u / sqrt(3) in the mean square, and in fp32 some units, for those sums.
TOLERANCES: dict[Dtype, Tolerance] = {  # by the precision of x
    "bf16": Tolerance(times=3.0, floor=2**-8 / sqrt(3)),
    "fp16": Tolerance(times=3.0, floor=2**-11 / sqrt(3)),
    "fp32": Tolerance(times=6.0, floor=32 * 2**-24),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Relative L2 errors of one tensor against fp64; infinite where not all of it is finite."""

    tensor: str
    error: float
    eager_error: float

    @property
    def ratio(self) -> float:
        """The error over eager's; 1 where they are equal."""
        if self.error == self.eager_error:
            return 1.0
        return self.error / self.eager_error if self.eager_error else inf

    def severity(self, precision: Dtype) -> float:
        """The error in units of the largest that passes: above 1 it fails. Where eager is not finite, any passes."""
        tolerance = TOLERANCES[precision]
        return 0.0 if self.eager_error == inf else self.error / max(tolerance.times * self.eager_error, tolerance.floor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The errors of a block on one set of operands."""

    tensors: tuple[Compared, ...]
    sides: float  # share of the values of its ReLUs that the scheme has on other sides of zero than fp64
    eager_sides: float

    @property
    def ratio(self) -> float:
        """The geometric mean of the tensors' ratios."""
        return exp(fsum(log(compared.ratio) for compared in self.tensors) / len(self.tensors))

    def worst(self, precision: Dtype) -> Compared:
        """The tensor of the largest severity."""
        return max(self.tensors, key=lambda compared: compared.severity(precision))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One comparison: of a block of the network under a gradient, or of hard operands."""

    name: str
    precision: Dtype
    gradient: str = ""  # of the result of a block of the network
    comparison: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class HardOperands:
    """Hard operands in words."""

    name: str
    why: str
    guards: dict[str, str]  # what handles them, and what that does
    limit: str
