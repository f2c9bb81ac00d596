"""The nouns of `resbench traffic`, as frozen data: standard library only.

An **operation** is one launch or one call of a library in a step. A **scheme** is a way to move the data of a step:
that of a path that is run without data, or one that is declared (`bench.traffic.schemes`). **Seen** bytes come from
the counters of a GPU that runs the step with data.
"""

from dataclasses import dataclass
from typing import Literal

from bench.types import Ceilings, Mode, Precision

Direction = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The step to count, and the schemes to count it of."""

    model: str
    mode: Mode = "train"
    precision: Precision = "bf16"
    batch_size: int = 256
    image_size: int = 224
    schemes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One launch or call of a step: the bytes it moves between memory and the processors, and its FLOPs."""

    part: str  # of the network: the stem, a block, the head
    direction: Direction
    name: str
    shape: tuple[int, ...] = ()  # of the largest tensor; none where it is counted by a formula
    bytes: int
    flops: int = 0  # of convolutions and products of matrices; a multiplication and an addition are two

    def floor_s(self, ceilings: Ceilings, precision: Precision) -> float:
        """The least time in seconds: that of its bytes or of its products, whichever is longer."""
        return max(self.bytes / ceilings.copy_bytes_per_s, self.flops / ceilings.matmul_flops_per_s[precision])


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One step of a scheme, operation by operation in the order in which they run."""

    scheme: str
    operations: tuple[Operation, ...]

    @property
    def bytes(self) -> int:
        return sum(operation.bytes for operation in self.operations)

    @property
    def flops(self) -> int:
        return sum(operation.flops for operation in self.operations)

    def floor_s(self, ceilings: Ceilings, precision: Precision) -> float:
        """The sum over operations, none of which runs beside another."""
        return sum(operation.floor_s(ceilings, precision) for operation in self.operations)

    def parts(self) -> dict[str, "Traffic"]:
        """The traffic of each part of the network, in the order of the forward pass."""
        return {
            part: Traffic(scheme=self.scheme, operations=tuple(row for row in self.operations if row.part == part))
            for part in dict.fromkeys(operation.part for operation in self.operations)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The bytes that passed between a GPU's memory and its caches in one step of a scheme."""

    scheme: str
    read_bytes: int
    written_bytes: int

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A request with its answer."""

    request: Request
    traffic: tuple[Traffic, ...]  # the most bytes first
    device: str  # a row of MACHINES, or this machine's cpu or cuda
    ceilings: Ceilings  # of the device: its data sheet's or measured
    seen: tuple[Seen, ...] = ()  # of the schemes whose counters could be read, on this machine's GPU alone
    unseen: tuple[str, ...] = ()  # why others could not be read, a sentence for each reason
