"""The depths of the reference ResNet, as data (He et al., 2015, table 1). Standard library only."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """Which residual block, and how many in each of the four stages."""

    block: Literal["basic", "bottleneck"]
    layers: tuple[int, int, int, int]


DEPTHS: dict[str, Depth] = {
    "resnet18": Depth(block="basic", layers=(2, 2, 2, 2)),
    "resnet34": Depth(block="basic", layers=(3, 4, 6, 3)),
    "resnet50": Depth(block="bottleneck", layers=(3, 4, 6, 3)),
    "resnet101": Depth(block="bottleneck", layers=(3, 4, 23, 3)),
    "resnet152": Depth(block="bottleneck", layers=(3, 8, 36, 3)),
}
