"""The page of numerics: how far a block that never writes its widest tensors is from fp64. Imports no torch."""

from collections.abc import Callable, Iterable, Sequence
from math import exp, fsum, log
from typing import Any

from bench.kernels.types import Dtype
from bench.numerics.types import TOLERANCES, Compared, HardOperands, Measured
from bench.render.records import Record, grouped
from bench.render.tables import texts
from bench.render.templates import templates
from bench.render.text import MISSING, prose, ratio, scientific

PRECISIONS = tuple(TOLERANCES)


def page(measured: Sequence[Measured], cases: Sequence[HardOperands], device: str, *, rows: int) -> str:
    """The text of docs/numerics.md: results of blocks of `rows` rows and of hard operands, and these in words."""
    blocks = [result for result in measured if result.gradient]
    hard = [result for result in measured if not result.gradient]
    text: str = templates.get_template("numerics/numerics.md.j2").render(
        device=device,
        rows=rows,
        tolerances=TOLERANCES.items(),
        summary=[_summary(blocks, precision) for precision in PRECISIONS],
        blocks=_pivoted(blocks, {"block": _name, "gradient": lambda result: result.gradient}, _block_ratios),
        sides=_pivoted(blocks, {"block": _name}, _sides),
        tensors=_table(_tensor_rows(blocks)),
        cases=_table([_described(case) for case in cases]),
        measured=_pivoted(hard, {"case": _name}, _worst_errors),
        limits=[case for case in cases if case.limit],
    )
    return text


def _described(case: HardOperands) -> Record:
    guards = "; ".join(f"**{name}**: {does}" for name, does in case.guards.items())
    return {"case": case.name, "what is hard": case.why, "what handles it": guards or MISSING}


def _name(result: Measured) -> str:
    return result.name


def _table(rows: list[Record]) -> str:
    """A table of prose, all of it to the left."""
    return texts([{name: prose(text) for name, text in row.items()} for row in rows], left=len(rows[0]))


def _pivoted(
    measured: Sequence[Measured], names: dict[str, Callable[[Measured], str]], show: Callable[[list[Measured]], str]
) -> str:
    """A table with a row for each combination of names, and in it a text for the results of each precision."""
    values: list[Record] = [
        {"result": result, "key": tuple(name(result) for name in names.values())} for result in measured
    ]
    rows: list[Record] = []
    for key, group in grouped(values, lambda row: row["key"]):
        results = {name: [row["result"] for row in group if row["result"].precision == name] for name in PRECISIONS}
        rows.append(dict(zip(names, key, strict=True)) | {name: show(some) for name, some in results.items()})
    return _table(rows)


def _block_ratios(results: list[Measured]) -> str:
    """E.g. 0.93x, at most 1.06x (d bias2)."""
    tensors = [tensor for result in results for tensor in result.comparison.tensors]
    most = max(tensors, key=lambda tensor: tensor.ratio)
    return f"{ratio(_mean_ratio(tensors))}, at most {ratio(most.ratio)} ({most.tensor})"


def _sides(results: list[Measured]) -> str:
    comparisons = [result.comparison for result in results]
    return _beside(max(row.sides for row in comparisons), max(row.eager_sides for row in comparisons))


def _worst_errors(results: list[Measured]) -> str:
    worst = results[0].comparison.worst(results[0].precision)
    return f"{_beside(worst.error, worst.eager_error)} ({worst.tensor})"


def _beside(error: float, eager_error: float) -> str:
    return f"{scientific(error)} / {scientific(eager_error)}"


def _tensor_rows(blocks: Sequence[Measured]) -> list[Record]:
    """Each tensor over all blocks and gradients: the largest errors, and the mean ratio."""
    rows: dict[str, dict[str, Any]] = {}
    for precision in PRECISIONS:
        for tensor, group in _by_tensor(blocks, precision).items():
            errors = _beside(max(row.error for row in group), max(row.eager_error for row in group))
            rows.setdefault(tensor, {"tensor": tensor})[precision] = f"{errors}, {ratio(_mean_ratio(group))}"
    return list(rows.values())


def _by_tensor(blocks: Sequence[Measured], precision: Dtype) -> dict[str, list[Compared]]:
    groups: dict[str, list[Compared]] = {}
    for result in blocks:
        for compared in result.comparison.tensors if result.precision == precision else ():
            groups.setdefault(compared.tensor, []).append(compared)
    return groups


def _summary(blocks: Sequence[Measured], precision: Dtype) -> str:
    """E.g. bf16: 0.93x eager's error in the geometric mean, 1.45x in the worst of 208 tensors."""
    tensors = [compared for group in _by_tensor(blocks, precision).values() for compared in group]
    mean, worst = ratio(_mean_ratio(tensors)), ratio(max(compared.ratio for compared in tensors))
    return f"{precision}: {mean} eager's error in the geometric mean, {worst} in the worst of {len(tensors)} tensors"


def _mean_ratio(tensors: Iterable[Compared]) -> float:
    """The geometric mean of the tensors' ratios."""
    logs = [log(compared.ratio) for compared in tensors]
    return exp(fsum(logs) / len(logs))
