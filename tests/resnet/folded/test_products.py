"""Networks for inference of products in Triton: right by every way, measured as `folded` is, captured as one graph."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import resnet.models.build
from bench.parity import locate
from kernels.launch import runtime
from kernels.launch.runtime import INTERPRETED
from kernels.products import block_chain
from resnet.folded import fastest, layers, products
from resnet.folded.fastest import Fastest, choices
from resnet.folded.network import FoldedResNet
from resnet.folded.products import BlockEnd, ProductResNet, fold_into_products
from resnet.models.resnet import Bottleneck, ResNet
from resnet.models.table import NETWORKS, Network
from resnet.paths import PATHS_BY_NAME
from resnet.program import Program
from tests.support.gram_cases import EXACT, dtypes
from tests.support.inputs import batch, reference_model

pytestmark = pytest.mark.usefixtures("one_thread")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHAINED_IN = EXACT if INTERPRETED else torch.float16  # whose products tensor cores have: else nothing is chained
PATH = PATHS_BY_NAME["folded-triton"]
SMALL = "resnet17"  # no row: chains from a projected block, into its own stage and the next; the rest cannot be
BASIC = "resnet10"
CHAINED = ("layer1.0", "layer1.1")
BLOCKS = (*CHAINED, "layer2.0", "layer3.0", "layer4.0")
WAYS = {  # and the parts of a block's end that choose a way of their own for them
    "chained": set(),
    "product": set(),
    "chained, bn2 folded": {"conv2"},
    "product, bn2 folded": {"conv2"},
    "folded": {"conv2", "conv3", "downsample"},
}

# Of the logits, as in tests/resnet/folded/test_layers.py.
ERRORS = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}


MOST_CHANNELS = 32  # in place of what registers hold
WIDTHS = {64: 32, 128: 32, 256: 48, 512: 48}  # in place of a resnet50's: the interpreter takes time for each value


class Narrow(ResNet):
    """A resnet50 in little, whose first two stages are narrow enough for a chain."""

    def __init__(self, name: str, **others: Any) -> None:  # noqa: ANN401
        super().__init__(name, **others)
        self.fc = nn.Linear(4 * WIDTHS[512], 10)

    def _stage(self, in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
        before = in_channels if channels == in_channels else 4 * WIDTHS[channels // 2]
        return super()._stage(before, WIDTHS[channels], blocks, stride=stride)


@pytest.fixture(autouse=True, scope="module")
def depths() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, SMALL, Network(name=SMALL, block="bottleneck", blocks=(2, 1, 1, 1)))
        patch.setitem(NETWORKS, BASIC, Network(name=BASIC, block="basic", blocks=(1, 1, 1, 1)))
        patch.setattr(block_chain, "MOST_CHANNELS", MOST_CHANNELS)
        patch.setattr(fastest, "_TRIALS", 1)
        interpreter = runtime.ARCHITECTURES["interpreter"]
        patch.setitem(runtime.ARCHITECTURES, "interpreter", replace(interpreter, multiprocessors=1))
        yield


def made(name: str = SMALL) -> ResNet:
    """With random BatchNorm parameters and statistics."""
    with pytest.MonkeyPatch.context() as patch:
        if name == SMALL:
            patch.setattr(resnet.models.build, "ResNet", Narrow)
        return reference_model(name, 0).eval().to(DEVICE)


@pytest.fixture(scope="module")
def model(depths: None) -> ResNet:
    del depths
    return made()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return batch(2, 33, 1, DEVICE)[0].contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def logits(model: ResNet, images: Tensor) -> Tensor:
    with torch.inference_mode():
        wanted: Tensor = copy.deepcopy(model).double()(images.double())
    return wanted


def relative(out: Tensor, ref: Tensor) -> float:
    return float((out.double() - ref).norm() / ref.norm())


def run(network: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        out: Tensor = network(images)
    return out


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """As on a device, where all ways are tried: that of this name wins wherever it is one."""

    def choose(winner: str) -> None:
        monkeypatch.setattr(products, "INTERPRETED", False)
        monkeypatch.setattr(layers, "_CANDIDATES", {})
        monkeypatch.setattr(layers, "_AVX512", {})
        monkeypatch.setattr(
            fastest, "_medians_ms", lambda calls, _: {name: 1.0 if name == winner else 2.0 for name in calls}
        )

    return choose


@dtypes
def test_the_network_computes_what_eager_does(
    model: ResNet, images: Tensor, logits: Tensor, dtype: torch.dtype
) -> None:
    network = fold_into_products(model, dtype)
    before = images.clone()
    found = run(network, images)
    assert found.dtype == dtype
    assert relative(found, logits) < ERRORS[dtype]
    assert torch.equal(images, before)


@pytest.mark.skipif(not INTERPRETED, reason="a device measures")
def test_without_a_clock_blocks_are_chained_where_they_can_be(model: ResNet, images: Tensor) -> None:
    network = fold_into_products(model, torch.float32)
    run(network, images)
    found = choices(network)
    ends = {f"{block}.end": "chained" if block in CHAINED else "product" for block in BLOCKS}
    firsts = {f"{block}.conv1": "product" for block in ("layer1.0", "layer3.0", "layer4.0")}
    assert found.items() >= (ends | firsts).items()
    assert found.keys() - ends.keys() - firsts.keys() == {"conv1", "maxpool", "fc"}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_right_where_it_is_one_and_the_report_has_what_it_needs(
    model: ResNet, images: Tensor, logits: Tensor, way: str, only: Callable[[str], None]
) -> None:
    """In fp64 nothing but the order of sums and of rounding differs: a wrong formula cannot hide."""
    only(way)
    network = fold_into_products(model, CHAINED_IN)
    assert relative(run(network, images), logits) < ERRORS[CHAINED_IN]
    found = choices(network)
    for block in BLOCKS:
        fits = block in CHAINED or not way.startswith("chained")
        assert found[f"{block}.end"] == (way if fits else "product")
    assert {name.rpartition(".")[2] for name in found if name.startswith("layer1.0.end.")} == WAYS[way]
    assert ("layer1.1.conv1" in found) == (not way.startswith("chained"))


def test_what_is_measured_is_chain_against_as_much_work(
    model: ResNet, images: Tensor, monkeypatch: pytest.MonkeyPatch, only: Callable[[str], None]
) -> None:
    only("product")
    seen: dict[str, list[object]] = {}

    def medians(calls: dict[str, Callable[[], object]], _: list[Tensor]) -> dict[str, float]:
        if "chained" in calls:
            seen.update({name: [type(of) for of in call()] for name, call in calls.items()})  # type: ignore[attr-defined]
        return dict.fromkeys(calls, 1.0)

    monkeypatch.setattr(fastest, "_medians_ms", medians)
    run(fold_into_products(model, CHAINED_IN), images)
    assert set(seen) == set(WAYS)
    assert all(results == [Tensor, Tensor] for results in seen.values())


def test_a_stride_in_the_next_convolution_is_no_chain(images: Tensor) -> None:
    """v1 has it there."""
    model = made()
    for stage in (model.layer2, model.layer3, model.layer4):
        block = stage[0]
        assert isinstance(block, Bottleneck)
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    wanted = run(copy.deepcopy(model).double(), images.double())
    network = fold_into_products(model, EXACT)
    assert relative(run(network, images), wanted) < ERRORS[EXACT]
    if INTERPRETED:
        found = choices(network)
        assert [found[of] for of in ("layer1.0.end", "layer1.1.end", "layer2.0.conv1")] == ["chained"] + ["product"] * 2


def test_a_bias_in_front_of_a_batch_norm_and_one_without_parameters(images: Tensor) -> None:
    model = made()
    block = model.layer1[0]
    assert isinstance(block, Bottleneck)
    for conv in (block.conv1, block.conv2, block.conv3):
        conv.bias = nn.Parameter(torch.linspace(-1.0, 1.0, conv.out_channels, device=DEVICE))
    for norm in (block.bn1, block.bn2):
        norm.weight = norm.bias = None  # type: ignore[assignment]
    wanted = run(copy.deepcopy(model).double(), images.double())
    network = fold_into_products(model, EXACT)
    assert relative(run(network, images), wanted) < ERRORS[EXACT]


def test_basic_blocks_are_folded(images: Tensor) -> None:
    model = made(BASIC)
    network = fold_into_products(model, torch.float32)
    assert isinstance(network, FoldedResNet)
    assert relative(run(network, images), run(model.double(), images.double())) < ERRORS[torch.float32]


@pytest.mark.parametrize("name", [SMALL, BASIC])
def test_every_layer_is_measured_as_it_will_be_captured(name: str) -> None:
    network = fold_into_products(made(name), torch.float32)
    assert all(module.captured for module in network.modules() if isinstance(module, Fastest))


@pytest.mark.parametrize("captured", [True, False])
def test_replays_are_timed_where_the_network_will_be_captured(
    images: Tensor, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fold_into_products(made(), torch.float32)
    assert isinstance(network, ProductResNet)
    network.conv1.captured = captured
    timed: list[object] = []

    def medians(calls: dict[str, object], _: object) -> dict[str, float]:
        timed.extend(calls.values())
        return dict.fromkeys(calls, 1.0)

    monkeypatch.setattr(fastest, "_CAPTURED", (DEVICE,))
    monkeypatch.setattr(fastest, "_replays", lambda calls: dict.fromkeys(calls, "a replay"))
    monkeypatch.setattr(fastest, "_medians_ms", medians)
    with torch.inference_mode():
        network.conv1(images)
    assert timed
    assert all((call == "a replay") == captured for call in timed)


def test_the_model_is_left_as_it_was_and_shares_nothing(images: Tensor) -> None:
    model = made().train()
    before = copy.deepcopy(model.state_dict())
    network = fold_into_products(model, torch.float32)
    run(network, images)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(7.0)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_copy_shares_nothing_and_chooses_anew(model: ResNet, images: Tensor) -> None:
    network = fold_into_products(model, torch.float32)
    before = run(network, images)
    copied = copy.deepcopy(network)
    assert choices(copied) == {}
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(7.0)
    assert torch.equal(run(copied, images), before)


def test_constants_are_kept_once(model: ResNet) -> None:
    """The next block's convolution is at hand in a block, and no part of it."""
    network = fold_into_products(model, torch.bfloat16)
    assert isinstance(network, ProductResNet)
    pointers = [tensor.data_ptr() for tensor in network.state_dict().values()]
    assert len(pointers) == len(set(pointers))
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == (torch.float32 if name.endswith(".line") else torch.bfloat16), name
    ends = [module for module in network.modules() if isinstance(module, BlockEnd)]
    assert len(ends) == len(BLOCKS)


@pytest.mark.usefixtures("flags_restored")
def test_a_captured_network_follows_its_inputs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU the graph is played: kernels that are no ops would be missing."""
    if DEVICE == "cpu":
        request.getfixturevalue("graphs_on_cpu")
        monkeypatch.setattr(layers, "_CANDIDATES", {})  # whose packed weights cannot be played
    program = Program(PATH, made(), mode="infer", precision="fp32", device=DEVICE)
    eager = Program(PATHS_BY_NAME["eager"], made(), mode="infer", precision="fp32", device=DEVICE)
    before = copy.deepcopy(program.model.state_dict())
    for seed in (1, 2):
        images, labels = batch(2, 33, seed, DEVICE)
        found = program.step(program.place(images), labels)
        assert relative(found.logits, eager.step(images, labels).logits.double()) < ERRORS[torch.float32]
    assert program.choices["fc"] == "aten"
    assert all(torch.equal(value, before[key]) for key, value in program.model.state_dict().items())


@pytest.mark.usefixtures("flags_restored")
def test_the_output_of_each_block_is_seen_where_a_wrong_layer_is_looked_for() -> None:
    program, eager = (
        Program(PATHS_BY_NAME[name], made(), mode="infer", precision="fp32", device=DEVICE)
        for name in ("folded-triton", "eager")
    )
    images, labels = batch(2, 33, 1, DEVICE)
    found, wanted = (locate._outputs(of, images, labels) for of in (program, eager))
    assert found.keys() == wanted.keys() == {"maxpool", *BLOCKS, "fc"}
    for name, value in wanted.items():
        assert relative(found[name], value.double()) < ERRORS[torch.float32], name
