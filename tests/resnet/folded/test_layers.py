from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import ClassVar
from weakref import WeakSet

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from bench.measure.inputs import make_model
from resnet.folded import fastest, layers
from resnet.folded.fastest import Way, choices
from resnet.folded.layers import FoldedConv2d
from resnet.folded.network import FoldedResNet, fold
from resnet.models.resnet import ResNet
from tests.support.cpus import needs_avx512_bf16
from tests.support.exhaustive import exhaustive
from tests.support.inputs import batch, reference_model
from tests.support.narrow_networks import NARROW17, NARROW18

Candidate = Callable[[FoldedConv2d, Tensor], Way]

# Folding rounds the weights once more. fp64: unit roundoff 1.1e-16, fp32 6e-8, bf16 3.9e-3, over some tens of layers.
ERRORS = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 3e-2}

pytestmark = pytest.mark.usefixtures("quick_choice")


@pytest.fixture(scope="module", params=[NARROW18, NARROW17, *exhaustive("resnet18", "resnet50")])
def model(request: pytest.FixtureRequest, narrow_depth: None) -> ResNet:  # noqa: ARG001
    """With random BatchNorm parameters and statistics."""
    return reference_model(request.param, 0).eval()


@pytest.fixture(scope="module", params=["resnet18", *exhaustive("resnet50")])
def wide(request: pytest.FixtureRequest) -> ResNet:
    """Whose channels our own convolutions take."""
    return reference_model(request.param, 0).eval()


@pytest.fixture(scope="module")
def shallow(narrow_depth: None) -> ResNet:  # noqa: ARG001
    return reference_model(NARROW18, 0).eval()


@pytest.fixture
def images() -> Tensor:
    return batch(2, 64, 1)[0].contiguous(memory_format=torch.channels_last)


def wanted(model: ResNet, images: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = deepcopy(model).double()(images.double())
    return logits


def relative(out: Tensor, ref: Tensor) -> float:
    return float((out.double() - ref).norm() / ref.norm())


def convolutions(network: FoldedResNet) -> dict[str, str]:
    """The choices without those of the pooling and the classifier, which have ways of their own."""
    return {name: choice for name, choice in choices(network).items() if name not in ("maxpool", "fc")}


def run(network: FoldedResNet, images: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = network(images)
    return logits


def candidates(monkeypatch: pytest.MonkeyPatch, **calls: Candidate) -> None:
    monkeypatch.setattr(layers, "_CANDIDATES", {"cpu": calls})
    monkeypatch.setattr(layers, "_AVX512", {})


def refusal(dtype: torch.dtype) -> str:
    """Why this CPU's oneDNN computes no convolution in `dtype`; empty where it does."""
    layer = FoldedConv2d(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), relu=True, dtype=dtype)
    x = torch.randn(2, 4, 9, 9).to(dtype).contiguous(memory_format=torch.channels_last)
    try:
        layer._onednn(x)(x, None)
    except RuntimeError as error:
        return str(error).partition("\n")[0].partition(". ")[0]
    return ""


def recorded(choice: str, dtype: torch.dtype) -> str:
    """What layers record that are to choose between ATen and oneDNN on this CPU."""
    why = refusal(dtype)
    return f"separate; onednn-fused refused: {why}" if why else choice


def make_fastest(monkeypatch: pytest.MonkeyPatch, winner: str) -> None:
    """Replace the clock: the candidate of this name wins wherever it runs."""

    def medians(calls: dict[str, Callable[[], Tensor]], _: list[Tensor]) -> dict[str, float]:
        return {name: 1.0 if name == winner else 2.0 for name in calls}

    monkeypatch.setattr(fastest, "_medians_ms", medians)


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
def test_the_folded_network_computes_what_eager_does(model: ResNet, dtype: torch.dtype, images: Tensor) -> None:
    logits = run(fold(model, dtype), images)
    assert logits.dtype == dtype
    assert relative(logits, wanted(model, images)) < ERRORS[dtype]


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
def test_its_choice_does_not_change_the_second_call(shallow: ResNet, dtype: torch.dtype, images: Tensor) -> None:
    network = fold(shallow, dtype)
    assert relative(run(network, images), run(network, images).double()) < ERRORS[dtype]


def test_every_convolution_records_its_choice(model: ResNet, images: Tensor) -> None:
    network = fold(model, torch.float32)
    assert choices(network) == {}
    run(network, images)
    assert {name: choices(network)[name] for name in ("maxpool", "fc")} == {"maxpool": "aten", "fc": "aten"}
    made = convolutions(network)
    assert list(made) == [name for name, module in network.named_modules() if isinstance(module, FoldedConv2d)]
    assert len(made) == sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert {choice.partition(";")[0] for choice in made.values()} <= {"separate", "onednn-fused"}


def test_the_stem_and_the_projections_stay_off_cudnns_fused_calls(
    model: ResNet, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fused(_x: Tensor, _weight: Tensor, *_: object) -> Tensor:
        raise RuntimeError("this machine has none")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", fused)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", fused)
    candidates(monkeypatch, cudnn=FoldedConv2d._cudnn)
    network = fold(model, torch.float32)
    run(network, images)
    made = convolutions(network)
    assert made.pop("conv1") == "separate; cudnn refused: it is not used for the 7x7 stem"
    projections = {made.pop(name) for name in list(made) if name.endswith("downsample")}
    assert projections == {"separate; cudnn refused: it ends in a ReLU, but this layer does not"}
    assert set(made.values()) == {"separate; cudnn refused: this machine has none"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("choice", ["separate", "onednn-fused"])
def test_the_fastest_candidate_is_kept_and_right(
    model: ResNet, images: Tensor, dtype: torch.dtype, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_fastest(monkeypatch, choice)
    monkeypatch.setattr(layers, "_AVX512", {})  # which refuse some layers
    network = fold(model, dtype)
    before = images.clone()
    for _ in range(2):  # the choosing call and one after it
        assert relative(run(network, images), wanted(model, images)) < ERRORS[dtype]
    assert set(convolutions(network).values()) == {recorded(choice, dtype)}
    assert torch.equal(images, before)


@needs_avx512_bf16
@pytest.mark.parametrize("choice", ["avx512-direct", "avx512-winograd"])
def test_our_own_convolutions_are_right_in_the_network_where_they_apply(
    wide: ResNet, images: Tensor, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_fastest(monkeypatch, choice)
    network = fold(wide, torch.bfloat16)
    for _ in range(2):
        assert relative(run(network, images), wanted(wide, images)) < ERRORS[torch.bfloat16]
    for name, made in convolutions(network).items():
        conv = network.get_submodule(name)
        assert isinstance(conv, FoldedConv2d)
        *_, size = conv.weight.shape
        takes = choice == "avx512-direct" or (size, conv.geometry[0]) == (3, [1, 1])
        assert made.startswith(choice) == takes
        assert (f"{choice} refused: this kernel supports only" in made) != takes


@needs_avx512_bf16
def test_the_pooling_and_the_classifier_have_ways_of_their_own(
    wide: ResNet, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted_logits = wanted(wide, images)
    for pooling, classifier in (("aten", "aten"), ("avx512", "avx512-direct")):
        winners = {pooling, classifier, "separate"}
        monkeypatch.setattr(
            fastest, "_medians_ms", lambda calls, _, winners=winners: {name: name not in winners for name in calls}
        )
        network = fold(wide, torch.bfloat16)
        for _ in range(2):
            logits = run(network, images)
            assert logits.shape == (2, 1000)
            assert relative(logits, wanted_logits) < ERRORS[torch.bfloat16]
        assert {name: choices(network)[name] for name in ("maxpool", "fc")} == {"maxpool": pooling, "fc": classifier}


class Prepared:
    """A way that knows its name; the numbers it computes are those of `separate`."""

    alive: ClassVar[WeakSet["Prepared"]] = WeakSet()

    def __init__(self, conv: FoldedConv2d, x: Tensor, name: str) -> None:
        self.way, self.name = conv._separate(x), name
        self.alive.add(self)

    def __call__(self, x: Tensor, residual: Tensor | None) -> Tensor:
        out: Tensor = self.way(x, residual)
        return out


def test_only_what_the_chosen_way_prepared_is_kept(
    shallow: ResNet, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates(monkeypatch, slow=partial(Prepared, name="slow"), fast=partial(Prepared, name="fast"))
    make_fastest(monkeypatch, "fast")
    network = fold(shallow, torch.float32)
    run(network, images)
    assert [way.name for way in Prepared.alive] == ["fast"] * len(convolutions(network))


@pytest.mark.parametrize(
    ("choice", "dtype"),
    [
        ("separate", torch.float32),
        ("onednn-fused", torch.float32),  # which every CPU's oneDNN computes
        pytest.param("avx512-direct", torch.bfloat16, marks=needs_avx512_bf16),
    ],
)
def test_a_copy_shares_nothing_and_chooses_anew(
    shallow: ResNet, images: Tensor, choice: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_fastest(monkeypatch, choice)
    network = fold(make_model("resnet18", 0).eval() if choice == "avx512-direct" else shallow, dtype)
    before = run(network, images)
    assert all(made.startswith(choice) for made in convolutions(network).values())
    copied = deepcopy(network)
    assert choices(copied) == {}
    assert torch.equal(run(copied, images), before)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.fill_(7.0)
    assert torch.equal(run(copied, images), before)


def test_it_is_measured_beside_what_other_layers_leave_in_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each timed call follows reads of other data, then of its own inputs."""
    seen: list[object] = []

    def call(name: str) -> Tensor:
        seen.append(name)
        return torch.zeros(1)

    monkeypatch.setattr(fastest, "_OTHER_LAYERS", {"cpu": 80})
    monkeypatch.setattr(fastest, "_TRIALS", 2)
    monkeypatch.setattr(Tensor, "sum", lambda tensor: seen.append(tensor.numel()))
    inputs = [torch.zeros(5), torch.zeros(7)]
    fastest._medians_ms({name: partial(call, name) for name in ("a", "b")}, inputs)
    assert seen == 2 * [10, 5, 7, "a", 10, 5, 7, "b"]


def test_a_candidate_that_refuses_is_named_with_its_reason(
    shallow: ResNet, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Way:
        raise RuntimeError("no engine for this shape. Set a variable to see more\nand a trace")

    candidates(monkeypatch, broken=refuse)
    network = fold(shallow, torch.float32)
    assert relative(run(network, images), wanted(shallow, images)) < ERRORS[torch.float32]
    made = choices(network)
    assert made["layer1.0.convs.0"] == "separate; broken refused: no engine for this shape"


def test_running_out_of_memory_is_no_refusal(shallow: ResNet, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Way:
        raise torch.OutOfMemoryError("full")

    candidates(monkeypatch, full=full)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        run(fold(shallow, torch.float32), images)


def test_a_layer_of_which_every_way_fails_says_why(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Tensor:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(F, "max_pool2d", fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        layers.FoldedMaxPool2d()(images)


def test_a_candidate_with_a_mistake_in_it_is_not_refused_in_silence(
    shallow: ResNet, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_: object) -> Way:
        raise TypeError("not a tensor")

    candidates(monkeypatch, mistaken=mistaken)
    with pytest.raises(TypeError, match="not a tensor"):
        run(fold(shallow, torch.float32), images)


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
def test_the_model_is_left_as_it_was(dtype: torch.dtype, images: Tensor, shallow: ResNet) -> None:
    model = deepcopy(shallow).train()
    before = deepcopy(model.state_dict())
    network = fold(model, dtype)
    run(network, images)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.fill_(7.0)
    assert model.training
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_convolution_is_convolution_and_norm(affine: bool, bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2, bias=bias)
    norm = nn.BatchNorm2d(6, affine=affine, eps=0.1).eval()
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        if tensor is not None:
            nn.init.uniform_(tensor, 0.5, 1.5)
    layer = FoldedConv2d(conv, norm, relu=False, dtype=torch.float64)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    with torch.inference_mode():
        ref = norm.double()(conv.double()(x))
        assert relative(layer(x), ref) < ERRORS[torch.float64]
        residual = torch.randn_like(ref)
        assert relative(layer(x, residual), ref + residual) < ERRORS[torch.float64]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("choice", ["separate", "onednn-fused"])
def test_every_way_adds_the_residual(choice: str, relu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make_fastest(monkeypatch, choice)
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6).eval()
    layer = FoldedConv2d(conv, norm, relu=relu, dtype=torch.float32)
    x, residual = torch.randn(2, 4, 9, 9), torch.randn(2, 6, 9, 9)
    with torch.inference_mode():
        ref = norm.double()(conv.double()(x.double())) + residual.double()
        out = layer(*(tensor.clone(memory_format=torch.channels_last) for tensor in (x, residual)))
    assert layer.choice == choice
    assert relative(out, ref.relu() if relu else ref) < ERRORS[torch.float32]


def test_a_norm_without_running_statistics_cannot_be_folded(shallow: ResNet) -> None:
    model = deepcopy(shallow)
    model.bn1 = nn.BatchNorm2d(64, track_running_stats=False)
    with pytest.raises(ValueError, match="track_running_stats=False"):
        fold(model, torch.float32)


def test_padding_by_name_cannot_be_folded(shallow: ResNet) -> None:
    model = deepcopy(shallow)
    model.conv1 = nn.Conv2d(3, 64, 7, padding="same")
    with pytest.raises(ValueError, match="'same'"):
        fold(model, torch.float32)
