"""Fused networks: the same parameters and results as plain ones, and what cannot be fused is left alone and named."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torchvision.models.resnet import Bottleneck

from bench.measure.inputs import make_model as make_telling_model
from resnet.fused.batch_norm import FusedBatchNormAct2d
from resnet.fused.blocks import FusedBasicBlock, FusedBottleneck, FusedResNet
from resnet.fused.fuse import FUSED, fuse, unfuse
from resnet.models.build import build_model
from tests.support.exhaustive import exhaustive
from tests.support.gram_networks import batch
from tests.support.narrow_networks import NARROW17, NARROW18
from tests.support.shallow_programs import make_batch, make_model, relative

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 2  # the second has momentum
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and how many modules of each are fused
    NARROW18: (lambda: build_model(NARROW18, num_classes=10), 9),
    NARROW17: (lambda: build_model(NARROW17, num_classes=10), 6),
    "resnet18": (lambda: build_model("resnet18", num_classes=10), 9),
    "resnet50": (lambda: build_model("resnet50", num_classes=10), 17),
    "resnet50 v1": (lambda: build_model("resnet50", num_classes=10, version="v1"), 17),
    "torchvision resnet34": (lambda: torchvision.models.resnet34(num_classes=10), 17),
    "torchvision resnext50": (lambda: torchvision.models.resnext50_32x4d(num_classes=10), 17),
    "torchvision wide_resnet50": (lambda: torchvision.models.wide_resnet50_2(num_classes=10), 17),
    "a small resnext": (lambda: torchvision.models.ResNet(Bottleneck, [2, 1, 1, 1], groups=8, width_per_group=4), 6),
}
CHECKED = (NARROW18, NARROW17, "a small resnext")  # by default
names = pytest.mark.parametrize("name", [*CHECKED, *exhaustive(*(name for name in NETWORKS if name not in CHECKED))])

pytestmark = pytest.mark.usefixtures("narrow_depth")


def network(name: str = NARROW18) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name][0]().to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def images(seed: int = 1) -> Tensor:
    return make_batch(seed, DEVICE)[0].contiguous(memory_format=torch.channels_last)


def train(model: nn.Module) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of a few steps of SGD from the model's parameters, and the state afterwards."""
    model = copy.deepcopy(model).train()
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    losses = []
    for seed in range(STEPS):
        optimizer.zero_grad()
        x, labels = batch(seed)
        loss = F.cross_entropy(model(x.to(dtype)), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


@names
def test_a_fused_network_has_the_parameters_of_the_plain_one_and_leaves_it_as_it_was(name: str) -> None:
    plain = network(name)
    kinds = [type(module) for module in plain.modules()]
    fused = fuse(plain)
    assert [type(module) for module in plain.modules()] == kinds
    assert sum(isinstance(module, tuple(FUSED.values())) for module in fused.modules()) == NETWORKS[name][1]
    assert not any(type(module) is nn.BatchNorm2d for module in fused.modules())
    state, its = plain.state_dict(keep_vars=True), fused.state_dict(keep_vars=True)
    assert list(state) == list(its)
    assert all(its[key] is value for key, value in state.items())
    back = unfuse(fused)
    assert [type(module) for module in back.modules()] == kinds
    assert all(vars(a).keys() == vars(b).keys() for a, b in zip(plain.modules(), back.modules(), strict=True))
    with torch.no_grad():
        assert torch.equal(back.eval()(images()), plain.eval()(images()))


@names
def test_a_fused_network_in_evaluation_computes_the_same(name: str) -> None:
    plain = network(name).eval()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        assert relative(fuse(plain)(images()), plain(images())) < 1e-5


@pytest.mark.parametrize(
    ("name", "rebuild"), [(NARROW18, True), pytest.param(NARROW17, False, marks=pytest.mark.exhaustive)]
)
def test_a_fused_network_trains_as_the_plain_one_does_exactly(name: str, rebuild: bool) -> None:
    """In fp64, where neither rounding nor a ReLU that flips by it hides a wrong formula."""
    torch.manual_seed(0)
    plain = build_model(name, num_classes=10).to(DEVICE, torch.float64, memory_format=torch.channels_last)  # type: ignore[call-overload]
    losses, after = train(plain)
    fused_losses, fused_after = train(fuse(plain, rebuild=rebuild))
    assert fused_losses == pytest.approx(losses, rel=1e-9)
    for key, value in after.items():
        moved = value - plain.state_dict()[key]
        assert moved.any(), key
        assert relative(fused_after[key] - plain.state_dict()[key], moved) < 1e-6, key
    assert fused_after["bn1.num_batches_tracked"] == STEPS


def nearest_to_zero(model: nn.Module) -> list[float]:
    """Filled by steps of the model: the smallest |value| that each ReLU meets."""
    found: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach().abs().min().item()))
    return found


def test_a_fused_network_trains_as_near_to_fp64_as_the_plain_one() -> None:
    """On values that no rounding of fp32 takes across zero: a ReLU that flipped would move gradients by far more."""
    plain = make_telling_model(NARROW18, 4).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = {name: tensor.double() for name, tensor in plain.state_dict().items()}
    exact, fused_model = copy.deepcopy(plain).double(), fuse(copy.deepcopy(plain))
    nearest = nearest_to_zero(exact)
    moved: list[dict[str, Tensor]] = []
    for model in (exact, plain, fused_model):
        dtype = next(model.parameters()).dtype
        x, labels = batch(0)
        F.cross_entropy(model.train()(x.to(dtype)), labels).backward()  # type: ignore[no-untyped-call]
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        buffers = {name: buffer.double() - state[name] for name, buffer in model.named_buffers()}
        moved.append({name: tensor for name, tensor in (gradients | buffers).items() if tensor is not None})
    assert min(nearest) > 1e-4, "rounding might flip a ReLU: take another seed"
    wanted, eager, fused = moved
    assert wanted.keys() == fused.keys()
    for key, value in wanted.items():
        assert relative(fused[key], value) < 4 * relative(eager[key], value) + 1e-5, key


def test_rebuilt_outputs_are_the_same_bits_and_are_not_kept() -> None:
    def step(model: nn.Module) -> tuple[int, Tensor, list[Tensor]]:
        """Bytes kept for backward, the output and the gradients."""
        kept = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(images())
        return sum(kept.values()), out.detach(), list(torch.autograd.grad(out.square().sum(), list(model.parameters())))

    torch.manual_seed(0)
    plain = make_model().to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    kept, out, gradients = step(fuse(copy.deepcopy(plain)))
    rebuilt_kept, rebuilt_out, rebuilt_gradients = step(fuse(copy.deepcopy(plain), rebuild=True))
    assert torch.equal(out, rebuilt_out)
    assert all(torch.equal(a, b) for a, b in zip(gradients, rebuilt_gradients, strict=True))
    inside = sum(2 * channels * (16 // 2**stage) ** 2 for stage, channels in enumerate((8, 16, 32, 64)))
    assert kept - rebuilt_kept == 4 * inside  # bytes of bn1's output in each of the four blocks


# What is left alone.


def warning_of(model: nn.Module) -> str:
    with pytest.warns(UserWarning, match="not fused") as caught:
        fuse(model)
    return str(caught[0].message)


def test_a_known_network_is_fused_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fuse(network())


def test_an_unknown_network_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    assert "Sequential (none of its modules is a block that fuse supports)" in warning_of(model)


def test_another_normalisation_is_left_alone_and_named() -> None:
    model = torchvision.models.resnet18(norm_layer=lambda channels: nn.GroupNorm(2, channels))
    message = warning_of(model)
    assert "ResNet (its normalisation is GroupNorm)" in message
    assert "layer4.1 (its normalisation is GroupNorm)" in message


def test_another_pooling_keeps_the_stem_plain_and_fuses_the_blocks() -> None:
    model = network().to("cpu")
    model.maxpool = nn.Identity()
    with pytest.warns(UserWarning, match=r"ResNet \(its pooling is not 3x3"):
        fused = fuse(model)
    assert not isinstance(fused, FusedResNet)
    assert isinstance(fused.get_submodule("layer1.0"), FusedBasicBlock)


def test_another_activation_keeps_what_has_it_plain() -> None:
    model = torchvision.models.resnet18(num_classes=10).eval()
    model.layer2[1].relu, model.relu = nn.SiLU(), nn.Hardswish()
    message = warning_of(model)
    assert "ResNet (its activation is Hardswish)" in message
    assert "layer2.1 (its activation is SiLU)" in message
    with torch.no_grad(), pytest.warns(UserWarning, match="not fused"):
        assert relative(fuse(model).to(DEVICE)(images()).cpu(), model.cpu()(images().cpu())) < 1e-5


@pytest.mark.parametrize(
    "shortcut",
    [
        nn.Conv2d(64, 128, 1, stride=2),
        nn.Sequential(nn.Conv2d(64, 128, 1, stride=2)),
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(64, 128, 1), nn.BatchNorm2d(128)),
    ],
    ids=["not sequential", "no normalisation", "pooled"],
)
def test_another_shortcut_keeps_a_block_plain(shortcut: nn.Module) -> None:
    model = network()
    setattr(model.get_submodule("layer2.0"), "downsample", shortcut)  # noqa: B010 - a child that the type does not know
    with pytest.warns(UserWarning, match=r"layer2\.0 \(its shortcut is not a convolution and a BatchNorm\)"):
        fused = fuse(model)
    assert type(fused.get_submodule("layer2.0")) is type(model.get_submodule("layer2.0"))


@pytest.mark.parametrize("name", ["relu", "downsample", "downsample.1", "bn2"])
def test_hooks_that_would_not_be_called_keep_a_block_plain(name: str) -> None:
    model = network()
    calls: list[nn.Module] = []
    model.get_submodule(f"layer2.0.{name}").register_forward_hook(lambda module, *_: calls.append(module))
    with pytest.warns(UserWarning, match=r"layer2\.0 \(it has hooks"):
        fused = fuse(model)
    with torch.no_grad():
        fused(images())
    assert calls


def test_a_subclass_of_a_block_is_left_alone() -> None:
    class Other(torchvision.models.resnet.BasicBlock):  # type: ignore[misc]
        pass

    model = torchvision.models.ResNet(Other, [1, 1, 1, 1])
    fused = fuse(model)
    assert isinstance(fused, FusedResNet)
    assert type(fused.layer1[0]) is Other


# What people do with networks.


def test_weights_pass_between_fused_networks_and_torchvision() -> None:
    plain, fused = torchvision.models.resnet18(num_classes=10).eval(), fuse(network("resnet18")).eval().to("cpu")
    fused.load_state_dict(plain.state_dict())
    with torch.no_grad():
        x = make_batch()[0]
        wanted = plain(x)
        assert relative(fused(x.to(DEVICE)) if DEVICE == "cpu" else fused.to(DEVICE)(x.to(DEVICE)).cpu(), wanted) < 1e-5
    plain.load_state_dict(fused.state_dict())


def test_a_fused_network_can_be_copied_pickled_and_moved(tmp_path: Path) -> None:
    fused = fuse(network()).eval()
    torch.save(fused, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    with torch.no_grad():
        wanted = fused(images())
        assert torch.equal(copy.deepcopy(fused)(images()), wanted)
        assert torch.equal(loaded(images()), wanted)
        assert torch.equal(unfuse(loaded)(images()), unfuse(fused)(images()))


def test_the_compiler_takes_a_fused_network_without_a_graph_break() -> None:
    fused = fuse(make_model().to(DEVICE, memory_format=torch.channels_last)).train()  # type: ignore[call-overload]
    twin = copy.deepcopy(fused)
    outputs = []
    for model, call in ((fused, fused), (twin, torch.compile(twin, fullgraph=True, backend="aot_eager"))):
        out = call(images())
        out.square().sum().backward()
        outputs.append((out.detach(), [parameter.grad for parameter in model.parameters()], list(model.buffers())))
    (out, gradients, buffers), (its_out, its_gradients, its_buffers) = outputs
    assert relative(its_out, out) < 1e-5
    for found, wanted in zip(its_gradients, gradients, strict=True):
        assert found is not None
        assert wanted is not None
        assert relative(found, wanted) < 1e-3
    for found, wanted in zip(its_buffers, buffers, strict=True):
        assert relative(found, wanted) < 1e-5


def test_autocast_keeps_activations_in_low_precision() -> None:
    fused = fuse(make_model().to(DEVICE, memory_format=torch.channels_last))  # type: ignore[call-overload]
    seen: list[torch.dtype] = []
    for module in fused.modules():
        if isinstance(module, FusedBatchNormAct2d | FusedBasicBlock):
            module.register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = fused(images())
    assert set(seen) == {torch.bfloat16}
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in fused.parameters())


def test_a_checkpointed_block_has_the_same_gradients() -> None:
    block = fuse(make_model().to(DEVICE)).get_submodule("layer2.0")
    x = torch.randn(2, 8, 8, 8, device=DEVICE, requires_grad=True)
    parameters = [x, *block.parameters()]
    wanted = torch.autograd.grad(block(x).square().sum(), parameters)
    again = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    found = torch.autograd.grad(again.square().sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_fused_network_can_be_exported() -> None:
    fused = fuse(make_model().to(DEVICE)).eval()
    exported = torch.export.export(fused, (images(),))
    with torch.no_grad():
        assert relative(exported.module()(images()), fused(images())) < 1e-6


def test_data_parallel_training_has_the_same_gradients(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        fused = fuse(make_model().to(DEVICE))
        wanted = torch.autograd.grad(fused(images()).square().sum(), list(fused.parameters()))
        parallel = nn.parallel.DistributedDataParallel(fused)
        parallel(images()).square().sum().backward()
        for parameter, gradient in zip(fused.parameters(), wanted, strict=True):
            assert parameter.grad is not None
            assert relative(parameter.grad, gradient) < 1e-6
    finally:
        torch.distributed.destroy_process_group()


def test_frozen_statistics_beside_trained_ones_end_a_block_right() -> None:
    torch.manual_seed(0)
    model = build_model(NARROW17, num_classes=10).to(DEVICE)
    fused = fuse(model)
    block, plain = fused.get_submodule("layer1.0"), model.get_submodule("layer1.0")
    assert isinstance(block, FusedBottleneck)
    x = torch.randn(2, 8, 8, 8, device=DEVICE)
    for each in (block, plain):
        each.train()
        each.get_submodule("downsample.1").eval()
    wanted = copy.deepcopy(plain)(x)
    assert relative(block(x), wanted) < 1e-5
