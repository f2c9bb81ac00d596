"""The least work of a case, and what this device was measured to reach: the two sides of a floor. Worker side."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import pairwise
from statistics import median
from time import perf_counter_ns
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.utils.flop_counter import FlopCounterMode

from bench.measure.memory import saved_storages
from bench.machine.requirements import AMPERE, fp16_runs_on_cpu
from bench.types import Ceilings, Cost, Device, Mode, Precision
from resnet.models.resnet import build_model
from resnet.program import set_product_precision

WIDTH: dict[Precision, int] = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}  # bytes of an activation
OPTIMIZER_BYTES = 6 * 4  # a parameter: fp32 gradient written and read, momentum and parameter read and written
COUNTED_BATCH = 2  # BatchNorm cannot train on one value a channel; everything counted here is linear in the batch

MIB = 2**20
COPY_BYTES = {"cpu": 256 * MIB, "cuda": 2048 * MIB}
PROBE_S = 0.2  # sampling time of one size of a probe
CALL_S = 0.2  # sizes stop growing before a call takes longer
BEATEN = 1.1  # rates of one machine differ by some per cent from call to call
MATMUL_SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
CONVOLUTION_BATCHES = {"cpu": (4, 16, 64), "cuda": (64, 256, 1024)}
CHANNELS, SIDE = 256, 14  # the 3x3 convolution of layer3

Probe = Literal["fp64", "fp32", "tf32", "bf16", "fp16"]
DTYPES: dict[Probe, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Work(NamedTuple):
    """Something to time, and the FLOPs of one call."""

    call: Callable[[], Tensor]
    flops: int


class _Count(NamedTuple):
    """Of one image: FLOPs, and elements that pass between memory and the products. Of the model: elements."""

    flops: int
    inputs: int
    outputs: int
    input_gradients: int
    weights: int
    parameters: int


def cost(model: str, mode: Mode, precision: Precision, batch_size: int, image_size: int) -> Cost:
    """FLOPs and minimal bytes of one step.

    FLOPs: the convolutions and the linear layer, two for each multiply-add, as torch.utils.flop_counter counts them;
    training adds their gradients for weights and inputs (none for the images). They are those of the definition of a
    convolution, so that Winograd's algorithm, which multiplies less, may go below a floor made of them. Pointwise
    operators, BatchNorm, pooling, the loss and the optimizer are not counted: below 1 % of a step.

    Bytes: every convolution and linear layer reads its input once and writes its output once, and reads its weights
    once, all at the precision's width (fp32, tf32: 4 bytes; bf16, fp16: 2). Training adds for each: the gradient of its
    output read once, its input read again for the gradient of the weights, the gradient of its input written (not for
    the images); and for each parameter the optimizer's fp32 traffic: gradient written and read, momentum and parameter
    read and written. Everything pointwise (BatchNorm, ReLU, residual add, pooling, loss) is taken as fused into the
    products at no cost: the floor of every scheme that fuses pointwise operators. It does not assume that products are
    chained in cache, so a step whose working set stays in the last-level cache can go below it.

    The first call of a process imports torch's decompositions (about a second). A process that will be forked may call
    it for `infer` to have them loaded, but not for `train`: a backward pass starts autograd's threads.

    Raises:
        ValueError: unknown model.
    """
    train = mode == "train"
    count = _count(model, train, image_size)
    width = WIDTH[precision]
    per_image = count.inputs + count.outputs
    if train:
        per_image += count.outputs + count.inputs + count.input_gradients
    optimizer = count.parameters * OPTIMIZER_BYTES if train else 0
    return Cost(
        flops=count.flops * batch_size,
        bytes=width * (per_image * batch_size + count.weights) + optimizer,
    )


def activation_bytes(model: str, batch_size: int, image_size: int, width: int) -> int:
    """Estimate of what autograd keeps for the backward pass of eager training, with `width` bytes an element."""
    return _saved_elements(model, image_size) * batch_size // COUNTED_BATCH * width


def measure_ceilings(device: Device, wanted: Iterable[str] | None = None) -> Ceilings:
    """Rates of a copy and of products on this device, a few seconds in all; medians, on random inputs.

    Copy: bytes read plus bytes written, with buffers much larger than the caches. Products: the better of a large
    square matrix product and a large 3x3 convolution, because on CPU convolutions can be the faster of the two. Of the
    wanted precisions, by default all, only those are measured that the device runs. The precision flags of torch are
    put back afterwards.
    """
    precisions = [name for name in _precisions(device) if wanted is None or name in wanted]
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


def product_rate(precision: Probe, device: Device) -> float:
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


def _precisions(device: Device) -> tuple[Probe, ...]:
    if device == "cpu":
        return ("fp64", "fp32", "bf16", "fp16") if fp16_runs_on_cpu() else ("fp64", "fp32", "bf16")
    if torch.cuda.get_device_capability() < AMPERE:
        return ("fp64", "fp32", "fp16")
    return ("fp64", "fp32", "tf32", "bf16", "fp16")


@lru_cache(maxsize=64)
def _count(model: str, train: bool, image_size: int) -> _Count:
    network, images = _on_meta(model, image_size)
    network.train(train)
    inputs = outputs = gradients = weights = 0

    def add(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        nonlocal inputs, outputs, gradients, weights
        inputs += arguments[0].numel()
        outputs += output.numel()
        gradients += arguments[0].numel() if arguments[0].requires_grad else 0
        weights += sum(parameter.numel() for parameter in module.parameters())

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        logits = network(images)
        if train:
            logits.sum().backward()
    return _Count(
        flops=counter.get_total_flops() // COUNTED_BATCH,
        inputs=inputs // COUNTED_BATCH,
        outputs=outputs // COUNTED_BATCH,
        input_gradients=gradients // COUNTED_BATCH,
        weights=weights,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


@lru_cache(maxsize=64)
def _saved_elements(model: str, image_size: int) -> int:
    """Elements kept at COUNTED_BATCH; an index of a pooling counts as one."""
    network, images = _on_meta(model, image_size)
    kept = saved_storages(lambda: network(images), network)
    return sum(saved.nbytes // saved.dtype.itemsize for saved in kept)


def _on_meta(model: str, image_size: int) -> tuple[nn.Module, Tensor]:
    with torch.device("meta"):
        return build_model(model), torch.empty(COUNTED_BATCH, 3, image_size, image_size)
