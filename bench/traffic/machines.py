"""GPUs that floors can be counted for, by their data sheets. Imports no torch."""

from dataclasses import dataclass

from bench.types import Ceilings


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A GPU that need not be here: the peaks of its vendor's data sheet, which nothing reaches."""

    name: str
    ceilings: Ceilings
    source: str


def _machine(name: str, memory: float, half: float, tf32: float, fp32: float, source: str) -> Machine:
    """A machine with this bandwidth in TB/s and these dense rates in TFLOP/s."""
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
