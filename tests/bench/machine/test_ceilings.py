from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.machine import ceilings as limits
from bench.run import worker
from bench.machine.ceilings import activation_bytes, cost, measure_ceilings
from bench.measure.memory import saved_storages
from bench.types import Ceilings, Mode, Precision
from resnet.models.table import DEPTHS
from resnet.models.resnet import build_model
from resnet.program import set_product_precision

# Multiply-adds of one image at 224 px, layer by layer (He et al., 2015, table 1; v1.5): pixels of the output, then
# input channels x output channels x kernel size.
STEM = 112**2 * (3 * 64 * 49)
FORWARD_FLOPS = {
    "resnet18": 2
    * (
        STEM
        + 56**2 * 4 * 64 * 64 * 9
        + 28**2 * (64 * 128 * 9 + 3 * 128 * 128 * 9 + 64 * 128)
        + 14**2 * (128 * 256 * 9 + 3 * 256 * 256 * 9 + 128 * 256)
        + 7**2 * (256 * 512 * 9 + 3 * 512 * 512 * 9 + 256 * 512)
        + 512 * 1000
    ),
    "resnet50": 2
    * (
        STEM
        + 56**2 * (64 * 64 + 2 * 256 * 64 + 3 * (64 * 64 * 9 + 64 * 256) + 64 * 256)
        + 56**2 * 256 * 128
        + 28**2 * (3 * 512 * 128 + 4 * (128 * 128 * 9 + 128 * 512) + 256 * 512)
        + 28**2 * 512 * 256
        + 14**2 * (5 * 1024 * 256 + 6 * (256 * 256 * 9 + 256 * 1024) + 512 * 1024)
        + 14**2 * 1024 * 512
        + 7**2 * (2 * 2048 * 512 + 3 * (512 * 512 * 9 + 512 * 2048) + 1024 * 2048)
        + 2048 * 1000
    ),
}


@pytest.mark.parametrize("model", FORWARD_FLOPS)
def test_forward_flops_are_those_of_the_paper(model: str) -> None:
    assert cost(model, "infer", "fp32", 1, 224).flops == FORWARD_FLOPS[model]


@pytest.mark.parametrize("model", FORWARD_FLOPS)
def test_training_is_three_forwards_but_for_the_gradient_of_the_images(model: str) -> None:
    assert cost(model, "train", "fp32", 1, 224).flops == 3 * FORWARD_FLOPS[model] - 2 * STEM


def test_flops_follow_the_batch_and_not_the_precision() -> None:
    one = cost("resnet18", "train", "fp32", 1, 64).flops
    assert cost("resnet18", "train", "bf16", 7, 64).flops == 7 * one


def stem_and_classifier_bytes(mode: Mode, precision: Precision, batch: int) -> int:
    """`cost` of the network below, written out."""
    width = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}[precision]
    image, features, logits = 3 * 8 * 8, 4 * 8 * 8, 10
    conv, linear = 3 * 4 * 9, 4 * 10 + 10
    forward = image + features + 4 + logits
    backward = features + image + logits + 4 + 4  # gradients of outputs, inputs again, gradient of the pooled input
    if mode == "infer":
        return width * (batch * forward + conv + linear)
    return width * (batch * (forward + backward) + conv + linear) + 24 * (conv + 2 * 4 + linear)


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_bytes_of_a_small_network_by_hand(mode: Mode, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(_: str) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 10),
        )

    monkeypatch.setattr(limits, "build_model", small)
    limits._count.cache_clear()
    found = cost("small", mode, precision, 5, 8)
    limits._count.cache_clear()
    assert found.bytes == stem_and_classifier_bytes(mode, precision, 5)
    conv, linear = 2 * 64 * 4 * 3 * 9, 2 * 4 * 10
    assert found.flops == 5 * (conv + linear if mode == "infer" else 2 * conv + 3 * linear)


def test_every_depth_has_a_cost_and_deeper_is_more() -> None:
    costs = [cost(model, "infer", "bf16", 1, 64) for model in DEPTHS]
    assert [c.flops for c in costs] == sorted({c.flops for c in costs})
    weights = sum(parameter.numel() for parameter in build_model("resnet18").parameters())
    assert cost("resnet18", "train", "fp32", 1, 64).bytes > 24 * weights


def test_unknown_model_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="resnet19"):
        cost("resnet19", "infer", "fp32", 1, 64)


@pytest.mark.parametrize("batch", [2, 6])
def test_activation_estimate_is_what_autograd_keeps(batch: int) -> None:
    model = build_model("resnet18")
    images = torch.randn(batch, 3, 64, 64)
    kept = sum(saved.nbytes for saved in saved_storages(lambda: model(images), model))
    assert activation_bytes("resnet18", batch, 64, 4) == pytest.approx(kept, rel=0.05)
    assert activation_bytes("resnet18", batch, 64, 8) == 2 * activation_bytes("resnet18", batch, 64, 4)


@pytest.fixture
def small_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COPY_BYTES", {"cpu": 4 * limits.MIB})
    monkeypatch.setattr(limits, "MATMUL_SIDES", {"cpu": (32, 64)})
    monkeypatch.setattr(limits, "CONVOLUTION_BATCHES", {"cpu": (1,)})
    monkeypatch.setattr(limits, "PROBE_S", 0.0)


@pytest.mark.usefixtures("small_probes")
@pytest.mark.parametrize("fp16", [True, False])
def test_ceilings_on_cpu(fp16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "fp16_runs_on_cpu", lambda: fp16)
    ceilings = measure_ceilings("cpu")
    assert list(ceilings.matmul_flops_per_s) == ["fp64", "fp32", "bf16"] + ["fp16"] * fp16
    rates = [ceilings.copy_bytes_per_s, *ceilings.matmul_flops_per_s.values()]
    assert all(1e3 < rate < 1e15 for rate in rates)  # in units, not in thousands of them


@pytest.mark.usefixtures("small_probes")
@pytest.mark.parametrize(("slower", "beaten"), [(0.5, True), (0.95, False), (2.0, False)])
def test_what_was_measured_beside_other_work_is_beaten(
    slower: float, beaten: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_median_seconds", lambda *_: 1e-3)
    rate = 2 * 64**3 / 1e-3
    kept = Ceilings(copy_bytes_per_s=1e10, matmul_flops_per_s={"fp32": slower * rate, "bf16": 1.0})
    assert limits.beaten(kept, "cpu") == beaten
    assert not limits.beaten(replace(kept, matmul_flops_per_s={"bf16": 1.0}), "cpu"), "nothing to compare with"


def test_ceilings_are_measured_where_none_are_kept_or_what_is_kept_is_beaten(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, measured = (Ceilings(copy_bytes_per_s=rate, matmul_flops_per_s={}) for rate in (1.0, 2.0))
    monkeypatch.setattr(limits, "measure_ceilings", lambda _: measured)
    assert worker.ceilings("cpu", None) == measured
    for beaten in (True, False):
        monkeypatch.setattr(limits, "beaten", lambda *_, beaten=beaten: beaten)
        assert worker.ceilings("cpu", kept) == (measured if beaten else kept)


@pytest.mark.usefixtures("small_probes")
def test_ceilings_put_the_flags_back(monkeypatch: pytest.MonkeyPatch) -> None:
    during = []

    def rate(precision: limits.Probe, _: str) -> float:
        set_product_precision(precision)
        during.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return 1.0

    monkeypatch.setattr(limits, "product_rate", rate)
    monkeypatch.setattr(limits, "_precisions", lambda _: ("tf32", "fp32"))
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = False
        measure_ceilings("cpu")
        assert during == [("high", True), ("highest", False)]
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32 == before[1]
        assert torch.backends.cudnn.benchmark is False
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[2]


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), ("fp64", "fp32", "tf32", "bf16", "fp16")), ((7, 5), ("fp64", "fp32", "fp16"))],
)
def test_precisions_of_a_gpu(
    capability: tuple[int, int], expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert limits._precisions("cuda") == expected


@pytest.mark.parametrize("make", [limits._matmul, limits._convolution])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_probe_counts_the_flops_of_its_call(make: Callable[..., limits.Work], dtype: torch.dtype) -> None:
    work = make(2, dtype=dtype, device="cpu")
    with FlopCounterMode(display=False) as counter:
        output = work.call()
    assert work.flops == counter.get_total_flops()
    assert output.dtype == dtype
    assert output.count_nonzero() > 0  # zeros are faster than numbers


def test_probe_sizes_stop_where_a_call_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {1: 0.01, 10: 0.05, 100: 0.4, 1000: 3.0}  # flops -> time of a call
    tried = []

    def make(size: int) -> limits.Work:
        return limits.Work(lambda: torch.tensor(size), size)

    def timed(call: Callable[[], torch.Tensor], _: str) -> float:
        tried.append(int(call()))
        return seconds[tried[-1]]

    monkeypatch.setattr(limits, "_median_seconds", timed)
    assert limits._best_rate(make, (1, 10, 100, 1000), "cpu") == 200.0
    assert tried == [1, 10]  # 100 was expected to take 0.5 s


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ceilings_on_cuda() -> None:
    ceilings = measure_ceilings("cuda")
    assert list(ceilings.matmul_flops_per_s) == list(limits._precisions("cuda"))
    assert ceilings.matmul_flops_per_s["fp16"] > ceilings.matmul_flops_per_s["fp32"] > 1e11
    assert ceilings.copy_bytes_per_s > 1e10
