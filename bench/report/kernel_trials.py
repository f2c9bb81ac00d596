"""What a search for tiles found: its times as tables, and the lines to paste into `kernels.launch.TILES`."""

from itertools import groupby
from math import exp, log

from bench.kernel_types import Trial
from bench.report.text import significant

WORTH = 0.01  # a tile that is faster by less stays as it is: the next search may find the opposite

Tile = tuple[int, int, int]
Trials = list[Trial]


def tables(found: Trials) -> dict[str, list[dict[str, object]]]:
    """For each kind of pass a line a tile, the fastest first: µs at each shape, and its mean time over the best."""
    return {kind: _lines(list(of)) for kind, of in groupby(found, key=lambda trial: trial.kind)}


def _lines(found: Trials) -> list[dict[str, object]]:
    scores = _scores(found)
    by_tile: dict[Tile, Trials] = {}
    for trial in found:
        by_tile.setdefault(trial.tile, []).append(trial)
    ordered = sorted(by_tile, key=lambda tile: scores.get(tile, float("inf")))
    return [
        {
            "KiB": tile[0],
            "warps": tile[1],
            "programs": tile[2],
            "": "present" if by_tile[tile][0].present else "",
            **{f"µs at {_shape(trial)}": _microseconds(trial) for trial in by_tile[tile]},
            "over best": f"{scores[tile]:.3f}" if tile in scores else "",
            "reason": "; ".join(dict.fromkeys(trial.reason for trial in by_tile[tile] if trial.reason)),
        }
        for tile in ordered
    ]


def _shape(trial: Trial) -> str:
    return f"{'x'.join(map(str, trial.op.shape))} {trial.op.dtype}"


def _microseconds(trial: Trial) -> str:
    return "" if trial.ms is None else significant(1e3 * trial.ms)


def _scores(found: Trials) -> dict[Tile, float]:
    """Of each tile that ran at every shape: the geometric mean over shapes of its time over the least."""
    times: dict[Tile, dict[object, float]] = {}
    shapes = {trial.op.key for trial in found}
    for trial in found:
        if trial.ms is not None:
            times.setdefault(trial.tile, {})[trial.op.key] = trial.ms
    least = {shape: min((of[shape] for of in times.values() if shape in of), default=0.0) for shape in shapes}
    return {
        tile: exp(sum(log(of[shape] / least[shape]) for shape in shapes) / len(shapes))
        for tile, of in times.items()
        if of.keys() == shapes
    }


def paste(found: Trials) -> list[str]:
    """The lines of TILES: of each kind the tile with the least mean, or the present one where that is as good."""
    return [_line(kind, list(of)) for kind, of in groupby(found, key=lambda trial: trial.kind)]


def _line(kind: str, found: Trials) -> str:
    scores = _scores(found)
    present = next(trial.tile for trial in found if trial.present)
    best = min(scores, key=lambda tile: scores[tile], default=present)
    comment = ""
    if present in scores and scores[present] <= scores[best] * (1 + WORTH):
        best = present
    elif present in scores:
        comment = f"  # {1 - scores[best] / scores[present]:.1%} less time than now"
    kibibytes, num_warps, programs = best
    arguments = f"kibibytes={kibibytes}, num_warps={num_warps}{f', programs={programs}' if programs > 1 else ''}"
    return f'    "{kind}": Tile({arguments}),{comment}'
