"""The reference ResNet and the ways to run it.

In your own code: `from resnet import FusedBatchNormAct2d, build_model, fuse, load_weights, unfuse`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet.fused.batch_norm import FusedBatchNormAct2d
    from resnet.fused.fuse import fuse, unfuse
    from resnet.models.build import build_model
    from resnet.models.weights import load_weights

__all__ = ["FusedBatchNormAct2d", "build_model", "fuse", "load_weights", "unfuse"]

# Imported on first use, so that the tables of paths and models can be read without torch.
_HOMES = {
    "FusedBatchNormAct2d": "resnet.fused.batch_norm",
    "build_model": "resnet.models.build",
    "fuse": "resnet.fused.fuse",
    "load_weights": "resnet.models.weights",
    "unfuse": "resnet.fused.fuse",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - depends on the name
    if name not in _HOMES:
        raise AttributeError(f"module 'resnet' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
