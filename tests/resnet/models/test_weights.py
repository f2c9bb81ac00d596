"""Weights by name and from files: what loads, and what each kind of bad input is told."""

import os
import pickle
import re
import socket
import traceback
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError
from urllib.request import Request

import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet18_Weights, ResNet50_Weights, resnet18

from resnet.models import weights
from resnet.models.build import build_model
from resnet.models.resnet import ResNet
from resnet.models.weights import load_weights


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    torch.manual_seed(1)
    state: dict[str, Tensor] = resnet18(weights=None).state_dict()
    return state


@pytest.fixture
def model() -> ResNet:
    torch.manual_seed(2)
    return build_model("resnet18")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch.hub cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def save(content: object, path: Path, *, new_format: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    return path


def refusal(model: ResNet, source: str | Path) -> str:
    """The message of the ValueError: one paragraph, no chain of causes, and the model untouched."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the callers compare the message
        load_weights(model, source)
    assert "direct cause" not in "".join(traceback.format_exception(caught.value))
    assert "During handling" not in "".join(traceback.format_exception(caught.value))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    message = str(caught.value)
    assert "\n" not in message
    return message


def loaded(model: ResNet, state: dict[str, Tensor]) -> bool:
    ours = model.state_dict()
    return ours.keys() == state.keys() and all(torch.equal(ours[key], state[key]) for key in ours)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_state_dict_file_loads(tmp_path: Path, model: ResNet, trained: dict[str, Tensor], new_format: bool) -> None:
    path = save(trained, tmp_path / "w.pth", new_format=new_format)
    assert not loaded(model, trained)
    load_weights(model, path)
    assert loaded(model, trained)
    path.write_bytes(b"")  # nothing of the model stays mapped to the file
    assert loaded(model, trained)


def test_a_path_may_be_a_string_and_a_state_dict_a_plain_dict(
    tmp_path: Path, model: ResNet, trained: dict[str, Tensor]
) -> None:
    load_weights(model, str(save(dict(trained), tmp_path / "w.pth")))
    assert loaded(model, trained)


def test_values_take_the_dtype_of_the_model(tmp_path: Path, model: ResNet, trained: dict[str, Tensor]) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in trained.items()}
    load_weights(model, save(half, tmp_path / "w.pth"))
    assert model.fc.weight.dtype == torch.float32
    assert torch.equal(model.fc.weight, trained["fc.weight"].half().float())


def test_files_older_than_num_batches_tracked_load(tmp_path: Path, model: ResNet, trained: dict[str, Tensor]) -> None:
    old = {key: value for key, value in trained.items() if not key.endswith("num_batches_tracked")}
    load_weights(model, save(OrderedDict(old), tmp_path / "w.pth"))
    assert loaded(model, trained)
    partial = {key: value for key, value in trained.items() if key != "bn1.num_batches_tracked"}
    message = refusal(model, save(partial, tmp_path / "w.pth"))
    assert "1 missing keys: bn1.num_batches_tracked" in message


def test_keys_and_shapes_that_do_not_fit_are_named(tmp_path: Path, model: ResNet, trained: dict[str, Tensor]) -> None:
    wrong = {key: value for key, value in trained.items() if not key.startswith("layer4.1.")}
    wrong |= {"fc.weight": torch.zeros(10, 512), "head.bias": torch.zeros(3)}
    path = save(wrong, tmp_path / "w.pth")
    assert refusal(model, path) == (
        f"the weights in {path} do not fit this resnet18: "
        "12 missing keys: layer4.1.conv1.weight, layer4.1.bn1.weight, layer4.1.bn1.bias and 9 more; "
        "1 unexpected keys: head.bias; "
        "1 wrong shapes: fc.weight is (10, 512) where the model has (1000, 512)"
    )


def test_weights_of_another_depth_are_refused(tmp_path: Path, model: ResNet) -> None:
    message = refusal(model, save(build_model("resnet34").state_dict(), tmp_path / "w.pth"))
    assert re.search(
        r"do not fit this resnet18: \d+ unexpected keys: layer1\.2\.conv1\.weight, .* and \d+ more", message
    )


class Code:
    """Unpickled in earnest, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, model: ResNet, new_format: bool) -> None:
    ran = tmp_path / "ran"
    path = save({"conv1.weight": Code(ran)}, tmp_path / "w.pth", new_format=new_format)
    message = refusal(model, path)
    assert message.startswith(f"{path} is not a file of weights (UnpicklingError)")
    assert "never loaded" in message
    assert not ran.exists()


def truncated_zip(path: Path) -> None:
    torch.save({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def truncated_legacy(path: Path) -> None:
    torch.save({"a": torch.ones(100)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "write",
    [
        truncated_zip,
        truncated_legacy,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("<html>not found</html>"),
        lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=4)),
        lambda path: torch.save(torch.nn.Linear(2, 2), path),
    ],
    ids=["truncated zip", "truncated legacy", "empty", "text", "pickle", "whole module"],
)
def test_a_file_that_is_no_checkpoint(
    tmp_path: Path, model: ResNet, write: Callable[[Path], object], recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "w.pth"
    write(path)
    message = refusal(model, path)
    assert [str(warning.message) for warning in recwarn] == []
    assert message.startswith(f"{path} is not a file of weights")
    assert message.endswith("Write one with torch.save(model.state_dict(), path)")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.ones(1)], "a list"),
        (torch.ones(1), "a Tensor"),
        ({"epoch": 3, "model": {}, "optimizer": {}, "args": {}}, "a dict of epoch, model, optimizer and 1 more"),
        ({0: torch.ones(1)}, "a dict of 0"),
    ],
)
def test_a_checkpoint_that_is_no_state_dict(tmp_path: Path, model: ResNet, content: object, found: str) -> None:
    path = save(content, tmp_path / "w.pth")
    assert refusal(model, path).startswith(f"{path} holds {found}, not a state_dict")


def test_neither_a_file_nor_a_published_name(tmp_path: Path, model: ResNet) -> None:
    allowed = "name of published weights of resnet18: IMAGENET1K_V1, DEFAULT"
    assert refusal(model, "IMAGENET1K_V2") == (
        "cannot read weights from IMAGENET1K_V2 (No such file or directory): "
        f"give the path of a state_dict file, or the {allowed}"
    )
    assert f"cannot read weights from {tmp_path} (Is a directory)" in refusal(model, tmp_path)
    assert "File name too long" in refusal(model, "w" * 300)


def test_offline_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch, hub: Path, model: ResNet) -> None:
    timeouts = []

    def unreachable(*_: object, **__: object) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    url = ResNet18_Weights.IMAGENET1K_V1.url
    assert refusal(model, "DEFAULT") == (
        "could not download IMAGENET1K_V1 of resnet18 (<urlopen error [Errno -2] Name or service not known>). Without "
        f"a network: download {url} on another machine, then put it at {hub / url.rpartition('/')[2]}, or pass its "
        "path instead of the name IMAGENET1K_V1"
    )
    assert timeouts == [weights.SOCKET_TIMEOUT_S]
    assert socket.getdefaulttimeout() is None
    assert list(hub.iterdir()) == []


class Response:
    """What urlopen gives: a body, and headers without a length."""

    def __init__(self, body: bytes) -> None:
        self.chunks = [body, b""]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def info(self) -> "Response":
        return self

    def get_all(self, _: str) -> None:
        return

    def read(self, _: int) -> bytes:
        return self.chunks.pop(0)


def test_a_download_with_another_hash_is_refused_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, hub: Path, model: ResNet
) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", lambda _: Response(b"sign in to this hotel's network"))
    message = refusal(model, "IMAGENET1K_V1")
    assert 'invalid hash value (expected "f37072fd"' in message
    assert list(hub.iterdir()) == []


def test_published_weights_come_from_the_cache_by_name(
    monkeypatch: pytest.MonkeyPatch, hub: Path, model: ResNet, trained: dict[str, Tensor]
) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", None)
    hub.mkdir(parents=True)
    save(trained, hub / ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    load_weights(model, "IMAGENET1K_V1")
    assert loaded(model, trained)


def test_default_is_torchvisions_default_of_the_models_depth(monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    asked = []

    def unreachable(request: Request) -> None:
        asked.append(request.full_url)
        raise TimeoutError("timed out")

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    with torch.device("meta"):
        model = build_model("resnet50")
    for name in ("IMAGENET1K_V1", "DEFAULT"):
        with pytest.raises(ValueError, match=r"of resnet50 \(timed out\)"):
            load_weights(model, name)
    assert asked == [ResNet50_Weights.IMAGENET1K_V1.url, ResNet50_Weights.IMAGENET1K_V2.url]
    assert hub.is_dir()


def test_published_weights_do_not_go_into_a_v1_bottleneck() -> None:
    with torch.device("meta"):
        model = build_model("resnet50", version="v1")
    with pytest.raises(ValueError, match=re.escape("stride in the 3x3 convolution: use version v1.5")):
        load_weights(model, "IMAGENET1K_V1")
