"""Trained weights for the reference model: torchvision's published ones by name, or a local state_dict file."""

import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from zipfile import is_zipfile

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from resnet.models.resnet import ResNet
from resnet.models.table import NETWORKS

SOCKET_TIMEOUT_S = 20.0  # per connect or read: with a firewall that drops packets they would hang for minutes
NAMED = 3  # how many offending keys an error names


def load_weights(model: nn.Module, source: str | os.PathLike[str]) -> None:
    """Fill every parameter and buffer of `model`, in place, from published weights or from a file.

    Args:
        model: has the depth, classes and input channels that the weights were trained with; unchanged on error. Its
            dtype and device stay; values are converted.
        source: for a reference ResNet the name of torchvision's published weights of its depth (`IMAGENET1K_V1`,
            `DEFAULT`, ...), downloaded once into torch.hub's cache; otherwise the path of a state_dict written by
            `torch.save`, loaded with `weights_only=True`, so that nothing in it is executed.

    Raises:
        ValueError: no such name or file, no network, a file that is not a state_dict, or one that does not fit the
            model (keys and shapes are compared strictly).

    Examples:
        >>> import tempfile
        >>> import torch
        >>> from resnet import build_model, load_weights
        >>> trained, model = build_model("resnet18"), build_model("resnet18")
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     torch.save(trained.state_dict(), file.name)
        ...     load_weights(model, file.name)  # or load_weights(model, "IMAGENET1K_V1")
        >>> torch.equal(model.fc.weight, trained.fc.weight)
        True
    """
    path = _file(model, source)
    try:
        state = _read(path)
    except OSError as error:
        published = ", ".join(_published(model))
        or_a_name = f", or the name of published weights of {_name(model)}: {published}" if published else ""
        raise ValueError(
            f"cannot read weights from {path} ({error.strerror or error}): "
            f"give the path of a state_dict file{or_a_name}"
        ) from None
    counters = {key: value for key, value in model.state_dict().items() if key.endswith(".num_batches_tracked")}
    if state.keys().isdisjoint(counters):
        state = {**counters, **state}  # written before PyTorch 0.4.1 introduced them; this model does not use them
    if differences := _differences(model.state_dict(), state):
        raise ValueError(f"the weights in {path} do not fit this {_name(model)}: {'; '.join(differences)}")
    model.load_state_dict(state, strict=True)


def _name(model: nn.Module) -> str:
    return model.name if isinstance(model, ResNet) else type(model).__name__


def _published(model: nn.Module) -> Mapping[str, WeightsEnum]:
    """The weights that torchvision publishes for the model, by their names; none for a network it does not have."""
    has_some = isinstance(model, ResNet) and NETWORKS[model.name].published
    return get_model_weights(model.name).__members__ if has_some else {}


def _file(model: nn.Module, source: str | os.PathLike[str]) -> Path:
    weights = _published(model).get(source) if isinstance(source, str) else None  # a Path is always a file
    return _download(model, weights) if weights is not None and isinstance(model, ResNet) else Path(source)


def _download(model: ResNet, weights: WeightsEnum) -> Path:
    """Path of the published file in torch.hub's cache, shared with torchvision, after a download if need be."""
    if model.version == "v1" and NETWORKS[model.name].block == "bottleneck":
        raise ValueError(
            f"torchvision's {weights.name} of {model.name} was trained with the stride in the 3x3 convolution: "
            "use version v1.5, or pass the path of weights trained as v1"
        )
    url: str = weights.url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout():
            # The file name ends in the first digits of its SHA-256: resnet50-11ad3fa6.pth
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the hash does not match
        raise ValueError(
            f"could not download {weights.name} of {model.name} ({error}). Without a network: download {url} on "
            f"another machine, then put it at {path}, or pass its path instead of the name {weights.name}"
        ) from None
    return path


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Set the process-wide time-out of sockets inside the context: torch.hub has no option for it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SOCKET_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read(path: Path) -> dict[str, Tensor]:
    """Load the state_dict of a file on CPU, memory-mapped if its format allows (that of PyTorch 1.6 and later)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about foreign formats, for which errors are raised below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - an unpickler may raise anything on foreign bytes
        raise ValueError(
            f"{path} is not a file of weights ({type(error).__name__}): it is damaged, in another format, or holds "
            "Python objects, which could run code and are never loaded. Write one with "
            "torch.save(model.state_dict(), path)"
        ) from None
    if isinstance(content, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        return content
    kind = f"a dict of {_some(list(content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
    raise ValueError(
        f"{path} holds {kind}, not a state_dict (names of parameters and buffers -> tensors). Write one with "
        "torch.save(model.state_dict(), path)"
    )


def _differences(expected: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    """List how `state` differs from the expected one, one phrase for each kind of difference; empty if it fits."""
    shapes = [
        f"{key} is {tuple(state[key].shape)} where the model has {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    kinds = {
        "missing keys": [key for key in expected if key not in state],
        "unexpected keys": [key for key in state if key not in expected],
        "wrong shapes": shapes,
    }
    return [f"{len(items)} {kind}: {_some(items)}" for kind, items in kinds.items() if items]


def _some(items: list[str]) -> str:
    rest = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(map(str, items[:NAMED])) + rest
