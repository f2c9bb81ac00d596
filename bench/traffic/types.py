"""The nouns of `resbench traffic`, as frozen data, and a table of GPUs: standard library only.

An **operation** is one launch or one call of a library in a step. A **scheme** is a way to move the data of a step:
that of a path that is run without data, or one that is declared (`bench.traffic.schemes`). What is **seen** comes from
the counters of a GPU that runs the step with data.
"""

from dataclasses import dataclass
from typing import Literal

from bench.types import Ceilings, Mode, Precision

Direction = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be counted."""

    model: str
    mode: Mode = "train"
    precision: Precision = "bf16"
    batch_size: int = 256
    image_size: int = 224
    schemes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What one launch or call of a step moves between memory and the processors, and computes."""

    part: str  # of the network: the stem, a block, the head
    direction: Direction
    name: str
    shape: tuple[int, ...] = ()  # of the largest tensor; none where it is counted by a formula
    bytes: int
    flops: int = 0  # of convolutions and products of matrices; a multiplication and an addition are two

    def floor_s(self, ceilings: Ceilings, precision: Precision) -> float:
        """The least time: that of its bytes, or if longer that of its products."""
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
        """The same by part of the network, in the order of the forward pass."""
        return {
            part: Traffic(scheme=self.scheme, operations=tuple(of for of in self.operations if of.part == part))
            for part in dict.fromkeys(operation.part for operation in self.operations)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What passed between a GPU's memory and its caches in one step of a scheme."""

    scheme: str
    read_bytes: int
    written_bytes: int

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A GPU that need not be here: the peaks of its vendor's data sheet, which nothing reaches."""

    name: str
    ceilings: Ceilings
    source: str


def _machine(name: str, memory: float, half: float, tf32: float, fp32: float, source: str) -> Machine:
    """Of TB/s, and of dense TFLOP/s."""
    rates = {"bf16": half * 1e12, "fp16": half * 1e12, "tf32": tf32 * 1e12, "fp32": fp32 * 1e12}
    ceilings = Ceilings(copy_bytes_per_s=memory * 1e12, matmul_flops_per_s=rates)
    return Machine(name=name, ceilings=ceilings, source=source)


# Tensor cores without sparsity (data sheets print twice as much, with it); fp32 without tensor cores.
MACHINES: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        _machine("a100", 2.039, 312, 156, 19.5, "NVIDIA A100 Tensor Core GPU data sheet, A100 80GB SXM"),
        _machine("h100", 3.35, 989.5, 494.5, 67, "NVIDIA H100 Tensor Core GPU data sheet, H100 SXM"),
        _machine("h200", 4.8, 989.5, 494.5, 67, "NVIDIA H200 Tensor Core GPU data sheet, H200 SXM"),
        _machine("b200", 7.7, 2250, 1100, 75, "NVIDIA Blackwell data sheet, a GPU of HGX B200"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A request with its answer."""

    request: Request
    traffic: tuple[Traffic, ...]  # the most bytes first
    device: str  # a row of MACHINES, or this machine's cpu or cuda
    ceilings: Ceilings  # of the device: its data sheet's or measured
    seen: tuple[Seen, ...] = ()  # of the schemes whose counters could be read; only where the device is a GPU here
    unseen: tuple[str, ...] = ()  # why others could not, a sentence a reason
