"""The reference ResNet and the ways to run it: `from resnet import build_model, fuse, unfuse`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet.fused.fuse import fuse, unfuse
    from resnet.models.build import build_model

__all__ = ["build_model", "fuse", "unfuse"]

# Loaded when asked for: the tables of paths and models are read without torch.
_HOMES = {"build_model": "resnet.models.build", "fuse": "resnet.fused.fuse", "unfuse": "resnet.fused.fuse"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever has that name
    if name not in _HOMES:
        raise AttributeError(f"module 'resnet' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
