"""The axes of a case in words: what all cases of a run have in common, and what tells one from the others."""

from collections.abc import Iterable, Sequence

from bench.terminal.sheet import DOT, Axis
from bench.types import Case
from resnet.models.table import pixels

# In reading order, the outermost first. The path is no axis here: it is what is compared.
AXES = (
    Axis("model", "model"),
    Axis("mode", "mode"),
    Axis("precision", "precision"),
    Axis("batch_size", "batch", "batch {}", "right"),
    Axis("image", "image", "{} px", "right"),
    Axis("device", "device"),
    Axis("world_size", "processes", "{} processes", "right", usual=1),
)
_IN_A_NAME = {"batch_size": "b{}", "image": "i{}", "world_size": "w{}"}  # as in `Case.key`


def values(case: Case) -> dict[str, object]:
    """The case's value on each axis, by its name."""
    own = {axis.name: getattr(case, axis.name) for axis in AXES if axis.name != "image"}
    return {**own, "image": pixels(case.model, case.image_size)}


def varying(cases: Iterable[Case]) -> list[Axis]:
    """The axes on which the cases differ."""
    known = list(map(values, cases))
    return [axis for axis in AXES if len({case[axis.name] for case in known}) > 1]


def common(cases: Sequence[Case]) -> str:
    """The values that all cases share, e.g. `resnet18 · batch 2 · 224 px · cpu`; empty for no case."""
    apart = varying(cases)
    shared = [(axis, values(cases[0])[axis.name]) for axis in AXES if axis not in apart] if cases else []
    return DOT.join(axis.says(value) for axis, value in shared if value != axis.usual)


def name(case: Case, apart: Iterable[Axis]) -> str:
    """The case by what tells it apart, e.g. `infer-bf16-compile`; its full key is `case.key`."""
    batch = {"batch_size": "bmax"} if case.kind == "max-batch" else {}
    own = values(case)
    words = [batch.get(axis.name) or _IN_A_NAME.get(axis.name, "{}").format(own[axis.name]) for axis in apart]
    largest = ["bmax"] if batch and not any(axis.name == "batch_size" for axis in apart) else []
    return "-".join([*words, *largest, case.path])
