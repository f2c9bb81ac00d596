"""The sums over the rows of the kernel bench: all work of one step, and the figures it is held against."""

from dataclasses import dataclass

from bench.kernels.report.rows import CONTENDERS, RATIOS, whole
from bench.kernels.types import BLOCK_FORMS, Contender
from bench.render.records import Record, grouped
from bench.stats import Interval

# Per cent of its roofline that a launch on a tensor larger than the cache has to reach on a GPU: passes that stream
# what they read to what they write, passes that sum, and products.
STREAMED, SUMMED, MULTIPLIED = 90.0, 85.0, 85.0
TARGETS = {"apply": STREAMED, "gradient": STREAMED, "pool": STREAMED, "statistics": SUMMED, "reduce": SUMMED}
NORMS, BLOCKS = "BatchNorm", "bottlenecks"  # what is added up, each by itself: a bottleneck has BatchNorms of its own
# Time of all BatchNorm work of a training step over another's, the largest that is good: set for batch 256 on an H200.
JUDGED_STEP = ("resnet50", "bf16", "train")
RATIO_TARGETS: dict[Contender, float] = {"eager": 0.5, "compile": 0.85}


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """All work of one kind in one step of a network, by one contender; None where a layer has no time."""

    model: str
    dtype: str
    work: str  # NORMS or BLOCKS
    contender: Contender
    layers: int
    timed: int  # of the layers
    forward_ms: float | None
    backward_ms: float | None
    over: dict[Contender, Interval]  # its time over that of others

    def untimed(self, why: str) -> bool:
        """Whether this machine cannot time it, which cannot time the fused kernels for this reason, if any."""
        return bool(why) and (self.contender == "fused" or self.work == BLOCKS)

    @property
    def ms(self) -> float | None:
        return None if self.forward_ms is None or self.backward_ms is None else self.forward_ms + self.backward_ms


def totals(rows: list[Record], models: tuple[str, ...]) -> list[Total]:
    """The totals by network, dtype, work and contender, but for copies. None for networks that were not asked for."""
    sums = []
    for model in models:
        layers = [row for row in whole(rows) if row[f"{model}_layers"]]
        for (dtype, work), cell in grouped(layers, lambda row: (row["dtype"], _work(row))):
            sums += [_total(cell, model, dtype, work, name) for name in CONTENDERS if name != "copy"]
    return sums


def _work(row: Record) -> str:
    return BLOCKS if row["form"] in BLOCK_FORMS else NORMS


def _total(rows: list[Record], model: str, dtype: str, work: str, name: Contender) -> Total:
    forward = [row for row in rows if row["direction"] == "forward"]
    backward = [row for row in rows if row["direction"] == "backward"]
    return Total(
        model=model,
        dtype=dtype,
        work=work,
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
    """The per cent of its roofline that the launch of a row has to reach."""
    return TARGETS.get(row["launch"].split()[0], MULTIPLIED)


def judged(rows: list[Record], cache_bytes: int) -> list[Record]:
    """The launches that the figures are about, those that miss theirs by most first."""
    large = [row for row in rows if row["launch"] and min(row["tensor_bytes"], row["bytes"]) > cache_bytes]
    timed = [row for row in large if row["fused_roofline_percent"] is not None]
    return sorted(timed, key=lambda row: row["fused_roofline_percent"] - target(row))
