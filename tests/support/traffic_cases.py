"""What the tests of traffic share: a network of few blocks, and what is counted of it."""

from collections.abc import Iterator
from typing import Any

import pytest

from bench.traffic.types import Request
from bench.types import Mode
from resnet.models.table import NETWORKS, Network

MODEL = "resnet17"  # two blocks of the first stage, the second with its shortcut as it is, and one of each other


@pytest.fixture(scope="module")
def few_bottlenecks() -> Iterator[None]:
    """Makes the depth known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, MODEL, Network(name=MODEL, block="bottleneck", blocks=(2, 1, 1, 1)))
        yield


def request(*schemes: str, mode: Mode = "train", **other: Any) -> Request:  # noqa: ANN401 - the other fields
    values: dict[str, Any] = {"model": MODEL, "batch_size": 8, "image_size": 64} | other
    return Request(**values, mode=mode, schemes=schemes)
