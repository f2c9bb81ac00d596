"""What the rows of the kernel bench add up to: all BatchNorm work of one step, and the figures it is held against."""

from dataclasses import dataclass

from bench.kernel_types import Contender
from bench.report.kernel_rows import CONTENDERS, RATIOS, whole
from bench.report.records import Record, grouped
from bench.stats import Interval

# Per cent of the measured copy rate that a pass over a tensor larger than the cache has to reach on a GPU: passes that
# stream what they read to what they write, and passes that sum.
STREAMED, SUMMED = 90.0, 85.0
TARGETS = {"apply": STREAMED, "gradient": STREAMED, "pool": STREAMED, "statistics": SUMMED, "reduce": SUMMED}
# Time of all BatchNorm work of a training step over another's, the largest that is good: set for batch 256 on an H200.
JUDGED_STEP = ("resnet50", "bf16", "train")
RATIO_TARGETS: dict[Contender, float] = {"eager": 0.5, "compile": 0.85}


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """All BatchNorm work of one step of a network, by one contender; None where a layer has no time."""

    model: str
    dtype: str
    contender: Contender
    layers: int
    timed: int  # of the layers
    forward_ms: float | None
    backward_ms: float | None
    over: dict[Contender, Interval]  # its time over that of others

    @property
    def ms(self) -> float | None:
        return None if self.forward_ms is None or self.backward_ms is None else self.forward_ms + self.backward_ms


def totals(rows: list[Record], models: tuple[str, ...]) -> list[Total]:
    """By network, dtype and contender; a copy is no contender here. Empty for networks of which nothing was asked."""
    found = []
    for model in models:
        layers = [row for row in whole(rows) if row[f"{model}_layers"]]
        for dtype, cell in grouped(layers, lambda row: row["dtype"]):
            found += [_total(cell, model, dtype, name) for name in CONTENDERS if name != "copy"]
    return found


def _total(rows: list[Record], model: str, dtype: str, name: Contender) -> Total:
    forward = [row for row in rows if row["direction"] == "forward"]
    backward = [row for row in rows if row["direction"] == "backward"]
    return Total(
        model=model,
        dtype=dtype,
        contender=name,
        layers=sum(row[f"{model}_layers"] for row in forward),
        timed=sum(row[f"{model}_layers"] for row in forward if row[f"{name}_ms"] is not None),
        forward_ms=_sum(forward, model, f"{name}_ms"),
        backward_ms=_sum(backward, model, f"{name}_ms"),
        over={under: ratio for over, under in RATIOS if over == name and (ratio := _ratio(rows, model, over, under))},
    )


def _sum(rows: list[Record], model: str, column: str) -> float | None:
    if any(row[column] is None for row in rows):
        return None
    return float(sum(row[f"{model}_layers"] * row[column] for row in rows))


def _ratio(rows: list[Record], model: str, over: Contender, under: Contender) -> Interval | None:
    """The mean of the rows' ratios, which were measured by turns, weighted by the time of the second.

    Its ends are those of all rows at once: wider than 95 %.
    """
    name = f"{over}_over_{under}"
    if any(row[name] is None for row in rows):
        return None
    weights = [row[f"{model}_layers"] * row[f"{under}_ms"] for row in rows]
    ends = (f"{name}_low", name, f"{name}_high")
    low, median, high = (
        sum(weight * row[end] for weight, row in zip(weights, rows, strict=True)) / sum(weights) for end in ends
    )
    return Interval(low=low, median=median, high=high)


def target(row: Record) -> float:
    """What the launch of a row has to reach."""
    return TARGETS[row["launch"].split()[0]]


def judged(rows: list[Record], cache_bytes: int) -> list[Record]:
    """The launches that the figures are about, those that miss theirs by most first."""
    large = [row for row in rows if row["launch"] and row["tensor_bytes"] > cache_bytes]
    timed = [row for row in large if row["fused_copy_percent"] is not None]
    return sorted(timed, key=lambda row: row["fused_copy_percent"] - target(row))
