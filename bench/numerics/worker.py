"""`resbench numerics`: how exact the block is that never writes its widest tensors. Worker side.

Measures every tensor of a training step against fp64, beside eager at the same precision, over every distinct block of
a network and over hard operands with and without what handles them, and writes the page and a CSV of all of it.
"""

import csv
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.kernels.ops import layers
from bench.kernels.types import Dtype
from bench.numerics.adversaries import ADVERSARIES, Adversary
from bench.numerics.block_errors import compare
from bench.numerics.guards import GUARDS
from bench.numerics.report import page
from bench.numerics.types import TOLERANCES, HardOperands, Measured
from bench.types import Device
from bench.workers.child import announce
from kernels.kernel import Shape
from kernels.table import BLOCKS_BY_NAME
from resnet.precision import DTYPES

MODEL = "resnet50"
MEANS = {"of mean zero": 0.0, "of one sign": 1.0}  # gradients of the result: the second with a mean of one deviation
BATCH_SIZE = 8
LINES = 14  # and columns of a block's result: BATCH_SIZE * LINES^2 rows are what the interpreter does in seconds


def write(out: Path, device: Device) -> None:
    """Measure all, and write the page and the CSV; tells the parent what is being measured."""
    measured: list[Measured] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of infinities in the interpreter
        for result in measure(device):
            announce(f"{result.name}, {result.precision}{result.gradient and ', gradient ' + result.gradient}")
            measured.append(result)
    write_csv(measured, out.with_suffix(".csv"))
    out.write_text(page(measured, cases(), device, rows=BATCH_SIZE * LINES**2), encoding="utf-8")


def blocks() -> dict[str, tuple[str, Shape]]:
    """Every distinct block of the network: its name, its form, and a shape of x with few pixels."""
    shapes: dict[str, tuple[str, Shape]] = {}
    for name, shape in layers(MODEL, BATCH_SIZE):
        if name in BLOCKS_BY_NAME:
            form, side = BLOCKS_BY_NAME[name], LINES * BLOCKS_BY_NAME[name].stride
            inside, outside = (round(shape[1] * ratio) for ratio in (form.inside, form.outside))
            shapes[f"{name} {shape[1]} -> {inside} -> {outside}"] = (name, (BATCH_SIZE, shape[1], side, side))
    return shapes


def measure(device: Device) -> Iterator[Measured]:
    """Measure every block, then every case of hard operands, at every precision."""
    for name, (form, shape) in blocks().items():
        for precision in TOLERANCES:
            operands = BLOCKS_BY_NAME[form].make(shape, DTYPES[precision], device)
            for gradient, mean in MEANS.items():
                yield Measured(
                    name=name,
                    precision=precision,
                    gradient=gradient,
                    comparison=compare(BLOCKS_BY_NAME[form], operands, mean=mean),
                )
    for case in ADVERSARIES:
        for precision in TOLERANCES:
            yield measure_case(case, precision, device)


def measure_case(case: Adversary, precision: Dtype, device: Device) -> Measured:
    """One case at one precision."""
    operands = case.operands(DTYPES[precision], device)
    comparison = compare(BLOCKS_BY_NAME[case.form], operands, mean=case.mean, size=case.size)
    return Measured(name=case.name, precision=precision, comparison=comparison)


def cases() -> tuple[HardOperands, ...]:
    """The hard operands in words."""
    return tuple(
        HardOperands(
            name=case.name,
            why=case.why,
            guards={guard: GUARDS[guard] for guard in case.guards},
            limit=case.limit,
        )
        for case in ADVERSARIES
    )


def write_csv(measured: Iterable[Measured], file: Path) -> None:
    """Write a row for each tensor."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["name", "precision", "gradient", "tensor", "error", "eager_error"])
        for result in measured:
            for compared in result.comparison.tensors:
                errors = [f"{error:.3e}" for error in (compared.error, compared.eager_error)]
                writer.writerow([result.name, result.precision, result.gradient, compared.tensor, *errors])
