"""Rows of a table as plain records, and their groups."""

from collections.abc import Callable
from itertools import groupby
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]  # a row of the frame: column -> value, None where missing


MODE_WORDS = {"infer": "inference", "train": "training"}


def grouped(rows: list[Record], key: Callable[[Record], Any]) -> list[tuple[Any, list[Record]]]:
    """The rows by key, both in the order in which they come."""
    keys = {key(row): place for place, row in reversed(list(enumerate(rows)))}
    ordered = sorted(rows, key=lambda row: keys[key(row)])
    return [(name, list(group)) for name, group in groupby(ordered, key=key)]
