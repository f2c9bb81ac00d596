"""Schemes by name: those of the paths, and those that are declared. Imports no torch.

A path that needs neither a compiler nor a clock is run without data (`bench.traffic.steps`). Every other is a row of
DECLARED, with the formulas of `bench.traffic.formulas` and the reason.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.traffic.formulas import (
    Formula,
    Part,
    folded_forward,
    fused_backward,
    fused_forward,
    inductor_backward,
    inductor_forward,
    inductor_inference,
    products_forward,
)
from bench.traffic.types import Direction, Operation
from bench.types import Mode
from resnet.paths import PATHS, PATHS_BY_NAME, Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A scheme that is counted by formula."""

    name: str
    summary: str
    reason: str  # why it is not run
    forward: Formula | None = None  # in training; None: it has no such mode
    backward: Formula | None = None
    inference: Formula | None = None

    def modes(self) -> tuple[Mode, ...]:
        return (*(("train",) if self.forward else ()), *(("infer",) if self.inference else ()))


DECLARED: dict[str, Declared] = {
    scheme.name: scheme
    for scheme in (
        Declared(
            name="inductor",
            summary="torch.compile: convolutions by cuDNN, what lies between them in as few passes as it takes",
            reason="what Inductor fuses is known only where it compiles for a GPU",
            forward=inductor_forward,
            backward=inductor_backward,
            inference=inductor_inference,
        ),
        Declared(
            name="cudnn-fused",
            summary="cuDNN's fused graphs, as in MLPerf: BatchNorm and ReLU on the way into a convolution, statistics "
            "on the way out",
            reason="PyTorch does not call these graphs",
            forward=fused_forward,
            backward=fused_backward,
        ),
        Declared(
            name="folded",
            summary="BatchNorm folded into the convolutions, bias, shortcut and ReLU on their way out",
            reason="it chooses between ways by measuring them",
            inference=folded_forward,
        ),
        Declared(
            name="folded-triton",
            summary="folded, by products that end blocks with their projected shortcuts, each chained to the first of "
            "the next block wherever that is possible",
            reason="it chooses between ways by measuring them",
            inference=products_forward,
        ),
    )
}


def operations(scheme: Declared, parts: Sequence[Part], mode: Mode) -> tuple[Operation, ...]:
    """The operations of one step of a declared scheme."""
    if mode == "infer":
        assert scheme.inference is not None  # noqa: S101 - see `scheme_of`
        return tuple(_by_formula(parts, scheme.inference, "forward"))
    assert scheme.forward is not None and scheme.backward is not None  # noqa: S101, PT018
    return (*_by_formula(parts, scheme.forward, "forward"), *_by_formula(parts[::-1], scheme.backward, "backward"))


def _by_formula(parts: Iterable[Part], formula: Formula, direction: Direction) -> Iterator[Operation]:
    for part in parts:
        for name, moved, flops in formula(part):
            yield Operation(part=part.name, direction=direction, name=name, bytes=round(moved), flops=flops)


def runs_without_data(path: Path) -> bool:
    """Whether a path's own network can be counted: nothing is compiled, and nothing is chosen by measuring."""
    return not path.fold and path.compile_mode is None


def scheme_of(name: str, mode: Mode) -> str:
    """The scheme that a name stands for in a mode: a declared scheme, or the first path that moves the same data.

    Raises:
        ValueError: an unknown name, or one without this mode.
    """
    if name not in DECLARED and name not in PATHS_BY_NAME:
        raise ValueError(f"unknown path {name!r}: choose from {', '.join(dict.fromkeys([*PATHS_BY_NAME, *DECLARED]))}")
    modes = PATHS_BY_NAME[name].modes if name in PATHS_BY_NAME else DECLARED[name].modes()
    if mode not in modes:
        raise ValueError(f"{name} has no mode {mode}: it runs in {', '.join(modes)}; choose another path or --mode")
    if name in DECLARED:
        return name
    path = PATHS_BY_NAME[name]
    if path.compile_mode is not None and not path.fuse:
        return "inductor"
    return next(row.name for row in PATHS if runs_without_data(row) and _modules(row) == _modules(path))


def _modules(path: Path) -> tuple[bool, ...]:
    """The fields that decide which operations run: not graphs, compilation or memory formats."""
    return path.fold, path.fuse, path.gram, path.rebuild


def all_schemes(mode: Mode) -> tuple[str, ...]:
    """Every scheme of a mode, once."""
    names = [
        *(path.name for path in PATHS if mode in path.modes),
        *(scheme.name for scheme in DECLARED.values() if mode in scheme.modes()),
    ]
    return tuple(dict.fromkeys(scheme_of(name, mode) for name in names))
