"""The frame as records in reading order: what tables, words and plots share."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from bench.render.records import MODE_WORDS, Record
from resnet.models.table import NETWORKS, pixels
from resnet.paths import PATHS_BY_NAME

MODEL_ORDER = tuple(NETWORKS)
MODE_ORDER = ("infer", "train")
PRECISION_ORDER = ("fp32", "tf32", "bf16", "fp16")
PATH_ORDER = tuple(PATHS_BY_NAME)

SETUP = ("model", "mode", "image_size", "device", "world_size")  # what a reader holds fixed; the rest is to choose


def records(frame: pd.DataFrame) -> list[Record]:
    """Every row, ordered by model, mode, place, batch, precision and path, each in its table's order."""
    plain = frame.astype(object).where(frame.notna(), None)
    rows: list[Record] = [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]
    return sorted(rows, key=_place)


def measured(rows: Iterable[Record]) -> list[Record]:
    """The rows that have a speed."""
    return [row for row in rows if row["images_per_s"] is not None]


def setup(row: Record) -> tuple[Any, ...]:
    return tuple(row[name] for name in SETUP)


def varying(rows: list[Record]) -> set[str]:
    """Which of the place columns differ between rows: the only ones worth a column of their own."""
    return {name for name in ("image_size", "device", "world_size") if len({row[name] for row in rows}) > 1}


def setup_name(row: Record, shown: set[str]) -> str:
    """E.g. `resnet50 training`, with the place columns in `shown` after it."""
    words = {
        "image_size": f"{pixels(row['model'], row['image_size'])} px",
        "device": row["device"],
        "world_size": f"{row['world_size']} process{'es' if row['world_size'] > 1 else ''}",
    }
    place = [word for name, word in words.items() if name in shown]
    return ", ".join([f"{row['model']} {MODE_WORDS.get(row['mode'], row['mode'])}", *place])


def _place(row: Record) -> tuple[Any, ...]:
    batch = row["batch_size"]
    return (
        _rank(row["model"], MODEL_ORDER),
        _rank(row["mode"], MODE_ORDER),
        row["device"],
        row["image_size"],
        row["world_size"],
        (batch is None, batch or 0),
        _rank(row["precision"], PRECISION_ORDER),
        _rank(row["path"], PATH_ORDER),
    )


def _rank(name: str, order: tuple[str, ...]) -> tuple[int, str]:
    return (order.index(name), "") if name in order else (len(order), name)
