from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.machine import ceilings as limits
from bench.machine.ceilings import measure_ceilings
from bench.run import worker
from bench.types import Ceilings
from resnet import precision as resnet_precision
from resnet.precision import set_product_precision


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

    def rate(precision: resnet_precision.Precision, _: str) -> float:
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
