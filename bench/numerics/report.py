"""The page of numerics: how far a block that never writes its widest tensors is from fp64. Imports no torch."""

from collections.abc import Callable, Iterable, Sequence
from math import exp, fsum, log
from typing import Any

from bench.kernels.types import Dtype
from bench.numerics.types import TOLERANCES, Case, Compared, Measured
from bench.render.records import Record, grouped
from bench.render.tables import Column, table
from bench.render.templates import templates
from bench.render.text import MISSING, prose, ratio, scientific

PRECISIONS = tuple(TOLERANCES)


def page(measured: Sequence[Measured], cases: Sequence[Case], device: str, *, rows: int) -> str:
    """docs/numerics.md of what was measured: of blocks of `rows` rows, and of cases."""
    blocks = [one for one in measured if one.gradient]
    hard = [one for one in measured if not one.gradient]
    text: str = templates.get_template("numerics/numerics.md.j2").render(
        device=device,
        rows=rows,
        tolerances=TOLERANCES.items(),
        summary=[_summary(blocks, precision) for precision in PRECISIONS],
        blocks=_pivoted(blocks, {"block": _name, "gradient": lambda one: one.gradient}, _of_block),
        sides=_pivoted(blocks, {"block": _name}, _sides),
        tensors=table(_of_tensors(blocks), _columns("tensor")),
        cases=table([_described(case) for case in cases], tuple(_left(name) for name in _DESCRIBED)),
        measured=_pivoted(hard, {"case": _name}, _of_case),
        limits=[case for case in cases if case.limit],
    )
    return text


_DESCRIBED = ("case", "what is hard", "what handles it")


def _described(case: Case) -> Record:
    guards = "; ".join(f"**{name}**: {does}" for name, does in case.guards.items())
    return dict(zip(_DESCRIBED, (case.name, case.why, guards or MISSING), strict=True))


def _name(one: Measured) -> str:
    return one.name


def _left(name: str) -> Column:
    return Column(name, lambda row: prose(row[name]), "left")


def _columns(*names: str) -> tuple[Column, ...]:
    """Columns of names, and one for each precision."""
    return (*map(_left, names), *map(_left, PRECISIONS))


def _pivoted(
    measured: Sequence[Measured], names: dict[str, Callable[[Measured], str]], show: Callable[[list[Measured]], str]
) -> str:
    """A table with a row for each of what is named, and in it what is shown of each precision."""
    values: list[Record] = [{"of": one, "key": tuple(name(one) for name in names.values())} for one in measured]
    rows: list[Record] = []
    for key, group in grouped(values, lambda row: row["key"]):
        found = {name: [row["of"] for row in group if row["of"].precision == name] for name in PRECISIONS}
        rows.append(dict(zip(names, key, strict=True)) | {name: show(ones) for name, ones in found.items()})
    return table(rows, _columns(*names))


def _of_block(ones: list[Measured]) -> str:
    """E.g. 0.93x, at most 1.06x (d bias2)."""
    tensors = [of for one in ones for of in one.comparison.tensors]
    most = max(tensors, key=lambda of: of.ratio)
    return f"{ratio(_mean(of.ratio for of in tensors))}, at most {ratio(most.ratio)} ({most.tensor})"


def _sides(ones: list[Measured]) -> str:
    return _beside(max(one.comparison.sides for one in ones), max(one.comparison.eager_sides for one in ones))


def _of_case(ones: list[Measured]) -> str:
    worst = ones[0].comparison.worst(ones[0].precision)
    return f"{_beside(worst.error, worst.eager_error)} ({worst.tensor})"


def _beside(error: float, eager_error: float) -> str:
    return f"{scientific(error)} / {scientific(eager_error)}"


def _of_tensors(blocks: Sequence[Measured]) -> list[Record]:
    """Each tensor over all blocks and gradients: the largest errors, and the mean ratio."""
    found: dict[str, dict[str, Any]] = {}
    for precision in PRECISIONS:
        for tensor, group in _by_tensor(blocks, precision).items():
            errors = _beside(max(of.error for of in group), max(of.eager_error for of in group))
            found.setdefault(tensor, {"tensor": tensor})[precision] = f"{errors}, {ratio(_mean_ratio(group))}"
    return list(found.values())


def _by_tensor(blocks: Sequence[Measured], precision: Dtype) -> dict[str, list[Compared]]:
    found: dict[str, list[Compared]] = {}
    for one in blocks:
        for of in one.comparison.tensors if one.precision == precision else ():
            found.setdefault(of.tensor, []).append(of)
    return found


def _summary(blocks: Sequence[Measured], precision: Dtype) -> str:
    """E.g. bf16: 0.93x eager's error in the geometric mean, 1.45x in the worst of 208 tensors."""
    tensors = [of for group in _by_tensor(blocks, precision).values() for of in group]
    mean, worst = ratio(_mean_ratio(tensors)), ratio(max(of.ratio for of in tensors))
    return f"{precision}: {mean} eager's error in the geometric mean, {worst} in the worst of {len(tensors)} tensors"


def _mean_ratio(tensors: Iterable[Compared]) -> float:
    return _mean(of.ratio for of in tensors)


def _mean(ratios: Iterable[float]) -> float:
    logs = [log(of) for of in ratios]
    return exp(fsum(logs) / len(logs))
