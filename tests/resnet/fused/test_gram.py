"""Networks whose bottleneck blocks are one node each: fuse(model, gram=True), and what people do with them."""

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torchvision.models.resnet import Bottleneck

from resnet.fused.blocks import FusedBasicBlock, FusedBottleneck, FusedResNet
from resnet.fused.fuse import fuse, unfuse
from resnet.fused.gram import GramBottleneck
from resnet.models.build import build_model
from resnet.models.table import NETWORKS, Network
from resnet.paths import PATHS_BY_NAME
from resnet.precision import Mode
from resnet.program import Program
from tests.support.exhaustive import exhaustive
from tests.support.gram_networks import DEVICE, batch, block, network
from tests.support.narrow_networks import NARROW17
from tests.support.shallow_programs import make_batch, relative

SMALL = "resnet17"  # not in NETWORKS: both kinds of blocks, and as few as that takes
STEPS = 2  # the second has momentum


@pytest.fixture(autouse=True, scope="module")
def small_depth() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, SMALL, Network(name=SMALL, block="bottleneck", blocks=(2, 1, 1, 1)))
        yield


def train(model: nn.Module, steps: int = STEPS, autocast: torch.dtype | None = None) -> tuple[list[float], nn.Module]:
    """Losses of steps of SGD from the parameters of the model, and what became of it."""
    model = copy.deepcopy(model).train()
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    losses = []
    for seed in range(steps):
        optimizer.zero_grad()
        x, labels = batch(seed)
        with torch.autocast(DEVICE, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            logits = model(x.to(dtype))
        loss = F.cross_entropy(logits.to(dtype), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses, model


VARIANTS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and how many blocks become one node
    "ours": (lambda: build_model(SMALL, num_classes=10), 5),
    "ours, v1": (lambda: build_model(SMALL, num_classes=10, version="v1"), 5),
    "torchvision resnet50": (lambda: torchvision.models.resnet50(num_classes=10), 16),
    "torchvision resnext50": (lambda: torchvision.models.resnext50_32x4d(num_classes=10), 16),
    "torchvision wide_resnet50": (lambda: torchvision.models.wide_resnet50_2(num_classes=10), 16),
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 0),
    "a small resnext": (lambda: torchvision.models.ResNet(Bottleneck, [2, 1, 1, 1], groups=8, width_per_group=4), 5),
}
CHECKED = ("ours", "a small resnext")  # by default


@pytest.mark.parametrize("name", [*CHECKED, *exhaustive(*(name for name in VARIANTS if name not in CHECKED))])
def test_networks_are_fused_over_the_same_parameters_and_compute_the_same_in_evaluation(name: str) -> None:
    make, blocks = VARIANTS[name]
    plain = network(make).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = fuse(plain, gram=True)
    assert isinstance(fused, FusedResNet)
    assert sum(isinstance(module, GramBottleneck) for module in fused.modules()) == blocks
    assert sum(type(module) in (FusedBottleneck, FusedBasicBlock) for module in fused.modules()) == (0 if blocks else 8)
    state, its = plain.state_dict(keep_vars=True), fused.state_dict(keep_vars=True)
    assert list(state) == list(its)
    assert all(its[key] is value for key, value in state.items())
    assert [type(module) for module in unfuse(fused).modules()] == [type(module) for module in plain.modules()]
    with torch.inference_mode():
        x = batch(1)[0]
        assert relative(fused(x), plain(x)) < 1e-5


def test_steps_of_training_are_those_of_the_plain_network() -> None:
    """In fp64, where neither rounding nor a ReLU that flips by it hides a wrong formula."""
    plain = network().double()
    losses, after = train(plain)
    fused_losses, fused_after = train(fuse(plain, gram=True))
    assert fused_losses == pytest.approx(losses, rel=1e-8)
    before, found = plain.state_dict(), fused_after.state_dict()
    for key, value in after.state_dict().items():
        moved = value - before[key]
        assert moved.any(), key
        assert relative(found[key] - before[key], moved) < 1e-6, key
    assert found["layer2.0.bn3.num_batches_tracked"] == STEPS


@pytest.mark.exhaustive
@pytest.mark.parametrize("autocast", [torch.bfloat16, None], ids=["bf16", "fp32"])
def test_steps_of_training_stay_as_near_to_fp64_as_those_of_the_plain_network(autocast: torch.dtype | None) -> None:
    plain = network()
    exact, _ = train(copy.deepcopy(plain).double(), 4)
    losses, _ = train(plain, 4, autocast)
    fused_losses, _ = train(fuse(plain, gram=True), 4, autocast)
    floor = 1e-5 if autocast is None else 1e-2  # of the first losses, whose errors are chance
    worst = [max(abs(of - wanted) for of, wanted in zip(each, exact, strict=True)) for each in (fused_losses, losses)]
    assert worst[0] <= max(3 * worst[1], floor)
    assert fused_losses[-1] != fused_losses[0]


def test_rebuilding_gives_the_same_bits_and_keeps_less() -> None:
    def step(model: nn.Module) -> tuple[int, list[Tensor]]:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(batch(1)[0])
        return sum(kept.values()), [out.detach(), *torch.autograd.grad(out.square().sum(), list(model.parameters()))]

    plain = network()
    bytes_kept, results = step(fuse(copy.deepcopy(plain), gram=True))
    bytes_rebuilt, rebuilt = step(fuse(copy.deepcopy(plain), gram=True, rebuild=True))
    assert all(torch.equal(a, b) for a, b in zip(results, rebuilt, strict=True))
    y1 = (4 + 8) * 16**2 + 8 * 8**2  # values of an image: of the second block conv2 has the stride
    assert bytes_kept - bytes_rebuilt == 4 * 4 * y1


# What people do with networks.


def test_autocast_keeps_results_in_low_precision_and_gradients_in_that_of_parameters() -> None:
    of, _, x = block("layer2.0")
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = of(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in of.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_converted_network_runs_without_autocast(dtype: torch.dtype) -> None:
    of, plain, x = block("layer2.0")
    out, wanted = of.to(dtype)(x.to(dtype)), plain.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert relative(out, wanted) < (1e-2 if dtype == torch.bfloat16 else 1e-12)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in of.parameters())


def test_a_scaled_loss_gives_scaled_gradients_in_fp16() -> None:
    of, _, x = block("layer2.0")
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**8)
    optimizer = torch.optim.SGD(of.parameters(), lr=1e-3)
    with torch.autocast(DEVICE, dtype=torch.float16):
        loss = of(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    found = [parameter.grad.clone() for parameter in of.parameters() if parameter.grad is not None]
    optimizer.zero_grad()
    of(x).square().mean().backward()
    for gradient, parameter in zip(found, of.parameters(), strict=True):
        assert parameter.grad is not None
        assert relative(gradient, parameter.grad) < 0.05  # a ReLU may flip; a scale left in is off by 255
    scaler.step(optimizer)
    assert scaler.get_scale() == 2.0**8


def test_statistics_without_tracking_are_those_of_the_batch_also_in_evaluation() -> None:
    of, plain, x = block("layer2.0")
    for each in (of, plain):
        for module in each.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
        each.eval()
    with torch.no_grad():
        assert relative(of(x), plain(x)) < 1e-5


def test_the_average_over_all_batches_is_tracked() -> None:
    of, plain, x = block("layer2.0")
    for each in (of, plain):
        for module in each.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        for shift in (0.0, 1.0):
            each(x + shift)
    buffers = dict(of.named_buffers())
    for name, value in plain.named_buffers():
        assert relative(buffers[name], value) < 1e-5, name


@pytest.mark.parametrize("frozen", ["conv3.weight", "bn3", "bn1", "conv1", "conv2", "downsample", "x", "all but bn3"])
def test_what_is_frozen_gets_no_gradient_and_the_others_the_same(frozen: str) -> None:
    of, _, x = block("layer2.0")
    x.requires_grad_()
    leaves = {"x": x, **dict(of.named_parameters())}
    wanted = dict(zip(leaves, torch.autograd.grad(of(x).square().sum(), list(leaves.values())), strict=True))
    for name, leaf in leaves.items():
        chosen = not name.startswith("bn3") if frozen == "all but bn3" else name.startswith(frozen)
        leaf.requires_grad_(not chosen)
    of(x).square().sum().backward()
    assert {leaf.requires_grad for leaf in leaves.values()} == {True, False}
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            assert leaf.grad is not None, name
            assert torch.equal(leaf.grad, wanted[name]), name
        else:
            assert leaf.grad is None, name


def test_a_checkpointed_block_has_the_same_gradients() -> None:
    of, _, x = block("layer2.0")
    x.requires_grad_()
    leaves = [x, *of.parameters()]
    wanted = torch.autograd.grad(of(x).square().sum(), leaves)
    again = torch.utils.checkpoint.checkpoint(of, x, use_reentrant=False)
    assert all(
        torch.equal(a, b) for a, b in zip(torch.autograd.grad(again.square().sum(), leaves), wanted, strict=True)
    )


def test_the_compiler_takes_a_network_without_a_graph_break() -> None:
    fused = fuse(network(), gram=True).train()
    twin = copy.deepcopy(fused)
    results = []
    for model, call in ((fused, fused), (twin, torch.compile(twin, fullgraph=True, backend="aot_eager"))):
        out = call(batch(1)[0])
        out.square().sum().backward()
        results.append([out.detach(), *(parameter.grad for parameter in model.parameters()), *model.buffers()])
    for found, wanted in zip(results[1], results[0], strict=True):
        assert relative(found, wanted) < 1e-3


def test_a_network_can_be_exported() -> None:
    fused = fuse(network(), gram=True).eval()
    x = batch(1)[0]
    with torch.no_grad():
        exported = torch.export.export(fused, (x,))
        assert relative(exported.module()(x), fused(x)) < 1e-6


def test_data_parallel_training_has_the_same_gradients(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        fused, x = fuse(network(), gram=True), batch(1)[0]
        wanted = torch.autograd.grad(fused(x).square().sum(), list(fused.parameters()))
        parallel = nn.parallel.DistributedDataParallel(fused)
        parallel(x).square().sum().backward()
        for parameter, gradient in zip(fused.parameters(), wanted, strict=True):
            assert parameter.grad is not None
            assert relative(parameter.grad, gradient) < 1e-6
    finally:
        torch.distributed.destroy_process_group()


def program(path: str, mode: Mode) -> Program:
    torch.manual_seed(0)
    model = build_model(NARROW17, num_classes=10)
    return Program(PATHS_BY_NAME[path], model, mode=mode, precision="fp32", device=DEVICE)


@pytest.fixture
def graphs(request: pytest.FixtureRequest) -> None:
    """CUDA's, or played."""
    if DEVICE == "cpu":
        request.getfixturevalue("graphs_on_cpu")


@pytest.mark.usefixtures("graphs", "flags_restored", "narrow_depth")
@pytest.mark.parametrize("mode", ["infer", *exhaustive("train")])
def test_a_whole_step_can_be_captured(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture runs nothing, so whatever asked for a value of a tensor would be refused."""
    monkeypatch.setattr("resnet.program._GRAPH_WARMUP_STEPS", 1)  # a step takes seconds
    captured, eager = program("gram-cuda-graph", mode), program("gram", mode)
    for seed in (1, 2) if mode == "infer" else (1,):
        x, labels = make_batch(seed, DEVICE)
        found, wanted = (of.step(of.place(x), labels) for of in (captured, eager))
        assert relative(found.logits, wanted.logits) < 1e-6
    state = captured.model.state_dict()
    for key, value in eager.model.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-6)
