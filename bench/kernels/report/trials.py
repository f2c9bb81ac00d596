"""The results of a search for tiles: its times as tables, and the lines to paste into the tables of tiles."""

import json
from itertools import groupby
from math import exp, log

from bench.kernels.types import TileKey, Trial
from bench.render.text import significant

WORTH = 0.01  # a tile that is faster by less stays as it is: the next search may find the opposite
LIBRARY = "library"
WORDS = {"kibibytes": "KiB", "num_warps": "warps", "num_stages": "stages"}  # where a column is not named as the field

Trials = list[Trial]
Choice = tuple[tuple[str, int], ...]  # a tile; none of its fields: a library


def tables(results: Trials) -> dict[str, list[dict[str, object]]]:
    """A table for each launch, a line for each tile, fastest first: µs at each shape, and mean time over the best."""
    return {_name(key): _lines(list(group)) for key, group in groupby(results, key=lambda trial: trial.key)}


def _name(key: TileKey) -> str:
    return key if isinstance(key, str) else "{2} {3} x {4}, {1}, {0}".format(*key)


def _choice(trial: Trial) -> Choice:
    return tuple(trial.tile.items())


def _lines(results: Trials) -> list[dict[str, object]]:
    scores = _scores(results)
    by_choice: dict[Choice, Trials] = {}
    for trial in results:
        by_choice.setdefault(_choice(trial), []).append(trial)
    fields = next(dict(choice) for choice in by_choice if choice)
    ordered = sorted(by_choice, key=lambda choice: scores.get(choice, float("inf")))
    return [
        {
            **{WORDS.get(name, name): dict(choice).get(name, "") for name in fields},
            "": "present" if by_choice[choice][0].present else "" if choice else LIBRARY,
            **{f"µs at {_shape(trial)}": _microseconds(trial) for trial in by_choice[choice]},
            "over best": f"{scores[choice]:.3f}" if choice in scores else "",
            "reason": "; ".join(dict.fromkeys(trial.reason for trial in by_choice[choice] if trial.reason)),
        }
        for choice in ordered
    ]


def _shape(trial: Trial) -> str:
    return f"{'x'.join(map(str, trial.op.shape))} {trial.op.dtype}"


def _microseconds(trial: Trial) -> str:
    return "" if trial.ms is None else significant(1e3 * trial.ms)


def _scores(results: Trials) -> dict[Choice, float]:
    """The score of each tile that ran at every shape: the geometric mean over shapes of its time over the least."""
    times: dict[Choice, dict[object, float]] = {}
    shapes = {trial.op.key for trial in results}
    for trial in results:
        if trial.ms is not None:
            times.setdefault(_choice(trial), {})[trial.op.key] = trial.ms
    least = {shape: min((ms[shape] for ms in times.values() if shape in ms), default=0.0) for shape in shapes}
    return {
        choice: exp(sum(log(ms[shape] / least[shape]) for shape in shapes) / len(shapes))
        for choice, ms in times.items()
        if ms.keys() == shapes
    }


def paste(results: Trials) -> dict[str, list[str]]:
    """The lines of each table: for each launch the tile with the least mean, or the present one where it is as good.

    TILES is written anew. SEARCHED takes what is better than the other tables say, by architecture and shape.
    """
    lines: dict[str, list[str]] = {"TILES in kernels/launch/passes.py": [], "SEARCHED in kernels/products/tiles.py": []}
    passes, products = lines.values()
    for key, group in groupby(results, key=lambda trial: trial.key):
        best, comment = _best(list(group))
        if isinstance(key, str):
            passes.append(f"    {json.dumps(key)}: Tile({_arguments(best)}),{comment}")
        elif comment:
            value = f"ProductTile({_arguments(best)})" if best else json.dumps(LIBRARY)
            products.append(f"    Product({', '.join(map(json.dumps, key))}): {value},{comment}")
    return {table: entries for table, entries in lines.items() if entries}


def _best(results: Trials) -> tuple[Choice, str]:
    """The best tile, and a comment that says by how much it beats the present one; empty where it is that one."""
    scores = _scores(results)
    present = next(_choice(trial) for trial in results if trial.present)
    best = min(scores, key=lambda choice: scores[choice], default=present)
    if present in scores and scores[present] <= scores[best] * (1 + WORTH):
        best = present
    if best == present:
        return best, ""
    gain = (
        f"{1 - scores[best] / scores[present]:.1%} less time than now" if present in scores else "the present one fails"
    )
    return best, f"  # {gain}"


def _arguments(choice: Choice) -> str:
    return ", ".join(f"{name}={value}" for name, value in choice if (name, value) != ("programs", 1))
