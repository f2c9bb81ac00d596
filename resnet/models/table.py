"""The networks, each a row of data. Standard library only.

A row says what the suite has to know of a network without building it: sweep, parity, traffic and reports read it
here. `resnet.models.build.build_network` makes what a row describes.
"""

from dataclasses import dataclass
from typing import Literal

Block = Literal["basic", "bottleneck"]
REFERENCE = "resnet.models.build:build_model"  # makes the reference ResNets


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A residual network: who makes it, what goes in and comes out, and how it is built."""

    name: str
    factory: str = REFERENCE  # "module:function": takes the name, returns an nn.Module
    input: tuple[int, int, int] = (3, 224, 224)  # channels, height, width of an image
    classes: int = 1000
    block: Block
    blocks: tuple[int, ...]  # residual blocks of each stage
    reduction: int = 32  # height of the images over that of the last stage
    width: int = 512  # channels inside the blocks of the last stage
    published: bool = True  # torchvision publishes trained weights under this name

    @property
    def is_reference(self) -> bool:
        """Whether it is a reference ResNet, which can be folded, and not another network."""
        return self.factory == REFERENCE

    def height(self, image_size: int | None) -> int:
        """The height of the images in pixels: the one that is asked for, or by default the network's own."""
        return self.input[1] if image_size is None else image_size

    def images(self, batch_size: int, image_size: int) -> tuple[int, int, int, int]:
        """The shape [N, C, H, W] of a batch of images that are `image_size` high, in the proportions of `input`."""
        channels, height, width = self.input
        return batch_size, channels, image_size, round(image_size * width / height)

    def last_stage(self, batch_size: int, image_size: int) -> int:
        """The number of values a channel that BatchNorm sees in the last stage: N * H * W."""
        _, _, height, width = self.images(batch_size, image_size)
        return batch_size * -(-height // self.reduction) * -(-width // self.reduction)

    def why_too_small(self, image_size: int | None) -> str:
        """Why images of this height are too small for the network; empty where they are not, or have its own."""
        if image_size is None or image_size >= self.reduction:
            return ""
        return f"{image_size} px is too small: {self.name} needs images from {self.reduction} px"


# The reference ResNets: He et al., 2015, table 1.
_REFERENCE = (
    Network(name="resnet18", block="basic", blocks=(2, 2, 2, 2)),
    Network(name="resnet34", block="basic", blocks=(3, 4, 6, 3)),
    Network(name="resnet50", block="bottleneck", blocks=(3, 4, 6, 3)),
    Network(name="resnet101", block="bottleneck", blocks=(3, 4, 23, 3)),
    Network(name="resnet152", block="bottleneck", blocks=(3, 8, 36, 3)),
)
NETWORKS: dict[str, Network] = {network.name: network for network in _REFERENCE}


def network_of(name: str) -> Network:
    """The row of a network.

    Raises:
        ValueError: there is no such network.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown model {name!r}: choose from {', '.join(NETWORKS)}")
    return NETWORKS[name]


def pixels(name: str, image_size: int) -> str:
    """The size of a network's images for people: `224` where they are square, else e.g. `20x24`."""
    if name not in NETWORKS:  # in a report of a run that another version made
        return str(image_size)
    _, _, height, width = NETWORKS[name].images(1, image_size)
    return str(height) if height == width else f"{height}x{width}"


def numbered(depths: tuple[int, ...]) -> tuple[str, ...]:
    """The names of the ResNets of these depths, e.g. `resnet18` for 18.

    Raises:
        ValueError: a depth that no row has.
    """
    names = tuple(f"resnet{depth}" for depth in depths)
    if unknown := [str(depth) for depth, name in zip(depths, names, strict=True) if name not in NETWORKS]:
        known = [name.removeprefix("resnet") for name in NETWORKS if name.removeprefix("resnet").isdigit()]
        raise ValueError(f"unknown depth {', '.join(unknown)}: choose from {', '.join(known)}")
    return names
