"""The rates that this device reaches, of a large copy and of large products, measured now. Worker side."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from statistics import median
from time import perf_counter_ns
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from bench.machine.requirements import AMPERE, fp16_runs_on_cpu
from bench.types import Ceilings, Device
from resnet.precision import DTYPES, Precision, set_product_precision

MIB = 2**20
COPY_BYTES = {"cpu": 256 * MIB, "cuda": 2048 * MIB}
PROBE_S = 0.2  # sampling time of one size of a probe
CALL_S = 0.2  # sizes stop growing before a call takes longer
BEATEN = 1.1  # rates of one machine differ by some per cent from call to call
MATMUL_SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
CONVOLUTION_BATCHES = {"cpu": (4, 16, 64), "cuda": (64, 256, 1024)}
CHANNELS, SIDE = 256, 14  # the 3x3 convolution of layer3


class Work(NamedTuple):
    """Something to time, and the FLOPs of one call."""

    call: Callable[[], Tensor]
    flops: int


def measure_ceilings(device: Device, names: Iterable[str] | None = None) -> Ceilings:
    """Rates of a copy and of products on this device, a few seconds in all; medians, on random inputs.

    Copy: bytes read plus bytes written, with buffers much larger than the caches. Products: the better of a large
    square matrix product and a large 3x3 convolution, because on CPU convolutions can be the faster of the two. Of the
    named precisions, by default all, only those are measured that the device runs. The precision flags of torch are
    put back afterwards.
    """
    precisions = [name for name in _precisions(device) if names is None or name in names]
    with _flags_put_back(), torch.inference_mode():
        rates: dict[str, float] = {precision: product_rate(precision, device) for precision in precisions}
        return Ceilings(
            copy_bytes_per_s=copy_rate(device),
            matmul_flops_per_s=rates,
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def beaten(kept: Ceilings, device: Device) -> bool:
    """Whether a product is faster now than the best was then: other work had a share of the device at that time.

    Takes half a second. The precision flags of torch are put back afterwards.
    """
    rate = kept.matmul_flops_per_s.get("fp32")
    if rate is None:
        return False
    with _flags_put_back(), torch.inference_mode():
        set_product_precision("fp32")
        work = _matmul(MATMUL_SIDES[device][1], dtype=torch.float32, device=device)
        return work.flops / _median_seconds(work.call, device) > BEATEN * rate


@contextmanager
def _flags_put_back() -> Iterator[None]:
    flags = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(flags[0])
        torch.backends.cudnn.allow_tf32 = flags[1]
        torch.backends.cudnn.benchmark = flags[2]


def product_rate(precision: Precision, device: Device) -> float:
    """FLOP/s of the faster of the two products. Sets torch's precision flags."""
    set_product_precision(precision)
    dtype = DTYPES[precision]
    rates = [_best_rate(partial(_matmul, dtype=dtype, device=device), MATMUL_SIDES[device], device)]
    if precision != "fp64":  # fp64 is for checking: no path runs in it
        rates.append(_best_rate(partial(_convolution, dtype=dtype, device=device), CONVOLUTION_BATCHES[device], device))
    return max(rates)


def _matmul(side: int, *, dtype: torch.dtype, device: Device) -> Work:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return Work(partial(torch.mm, a, b), 2 * side**3)


def _convolution(batch: int, *, dtype: torch.dtype, device: Device) -> Work:
    x = torch.randn(batch, CHANNELS, SIDE, SIDE, device=device)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device)
    x, weight = (tensor.to(dtype, memory_format=torch.channels_last) for tensor in (x, weight))
    return Work(partial(F.conv2d, x, weight, padding=1), 2 * batch * SIDE**2 * CHANNELS**2 * 9)


def _best_rate(make: Callable[[int], Work], sizes: tuple[int, ...], device: Device) -> float:
    """FLOP/s of the best size, by medians. A slow device stops before the sizes whose calls would take too long."""
    best = 0.0
    for size in sizes:
        work = make(size)
        if best and work.flops / best > CALL_S:
            break
        best = max(best, work.flops / _median_seconds(work.call, device))
    return best


def copy_rate(device: Device) -> float:
    """Bytes read plus bytes written per second, by a copy much larger than the caches. Call it in inference mode."""
    nbytes = COPY_BYTES[device]
    if device == "cuda":
        nbytes = min(nbytes, torch.cuda.mem_get_info()[0] // 4)
    source = torch.randn(MIB // 4, device=device).repeat(nbytes // MIB)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(lambda: target.copy_(source), device)


def _median_seconds(call: Callable[[], object], device: Device) -> float:
    call()  # libraries search and pack at the first call
    quickest = min(_call_seconds(call, device, 3))
    return median(_call_seconds(call, device, min(100, max(5, int(PROBE_S / quickest)))))


def _call_seconds(call: Callable[[], object], device: Device, calls: int) -> list[float]:
    if device == "cpu":
        times = [perf_counter_ns()]
        for _ in range(calls):
            call()
            times.append(perf_counter_ns())
        return [(end - start) / 1e9 for start, end in pairwise(times)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]  # type: ignore[no-untyped-call]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairwise(events)]


def _precisions(device: Device) -> tuple[Precision, ...]:
    if device == "cpu":
        return ("fp64", "fp32", "bf16", "fp16") if fp16_runs_on_cpu() else ("fp64", "fp32", "bf16")
    if torch.cuda.get_device_capability() < AMPERE:
        return ("fp64", "fp32", "fp16")
    return ("fp64", "fp32", "tf32", "bf16", "fp16")
