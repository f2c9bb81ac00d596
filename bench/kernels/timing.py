"""Times calls on operands that come from memory: contenders by turns, on CUDA as graphs of many calls. Worker side.

Every contender rotates through sets of operands, so many that all caches have seen other data before a set comes again,
and keeps each result until then, so that results go to memory as well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from bench.kernels.operands import AnyOperands, Function, mapped
from bench.kernels.types import Contender
from bench.machine.ceilings import MIB
from bench.measure.malloc import freed_is_kept
from bench.measure.timing import CLOCKS, Step
from bench.measure.turns import Turn, take
from bench.types import Device, Rounds, Settings
from kernels.bottleneck.forms import BlockOperands
from kernels.kernel import Operands
from kernels.launch.runtime import Call

CONFIDENCE = 0.01  # half-width of the 95 % interval of a ratio that ends sampling before its time
TURN_S = {"cpu": 0.02, "cuda": 0.005}  # short against the drifts of clocks and of neighbours
TURN_STEPS = 20  # at most: on a machine that is busy elsewhere the next step may take 100 times as long as the last
GRAPH_S = 0.002  # of the calls in one CUDA graph: its own start takes some microseconds
REHEARSALS = 3
CACHES_TO_EXCEED = 2
MOST_SETS = 256  # tensors so small that more would be needed are none of a network's at a useful batch
FALLBACK_CACHE = 2**26  # bytes, where the system does not tell its caches

Calls = Sequence[Callable[[], object]]  # one for each set of operands


@dataclass(slots=True)
class Rotation:
    """A step that takes the next of `calls` each time, and keeps its result until that one comes again."""

    calls: Calls
    _results: list[object] = field(init=False)
    _next: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._results = [None] * len(self.calls)

    def __call__(self) -> None:
        self._results[self._next] = self.calls[self._next]()
        self._next = (self._next + 1) % len(self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A step that the clock can time, and how many calls it makes."""

    step: Step
    calls: int = 1


def cache_bytes(device: Device) -> int:
    """Bytes of the last cache before memory."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((_kibibytes(file.read_text(encoding="utf-8")) * 1024 for file in sizes), default=FALLBACK_CACHE)


def _kibibytes(text: str) -> int:
    """The number in a size as Linux writes it, e.g. `32768K`."""
    return int(text.strip().removesuffix("K"))


def rotated(operands: AnyOperands, number: int) -> list[AnyOperands]:
    """Copies of operands, each in memory of its own."""
    return [mapped(operands, torch.Tensor.clone) for _ in range(number)]


def sets(set_bytes: int, cache: int) -> int:
    """The number of sets of operands of this size: between two uses of one, the others fill the cache twice.

    Except for tensors of some kilobytes, of which there are MOST_SETS.
    """
    return min(MOST_SETS, 1 + max(1, ceil(CACHES_TO_EXCEED * cache / set_bytes)))


@contextmanager
def quiet_device(device: Device) -> Iterator[None]:
    """A context for all that is timed: CPU memory that is freed is kept; CUDA has a stream that can be captured.

    Backward runs on the stream of its forward pass: that has to be the stream of the capture.
    """
    with freed_is_kept(device):
        if device == "cpu":
            yield
            return
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            yield


def forward_calls(function: Function, operands: Sequence[Operands | BlockOperands], *, training: bool) -> Calls:
    """Forward calls, as in a training step where gradients are enabled: with all that autograd keeps."""
    return [partial(function, one_set, training) for one_set in operands]


def backward_calls(function: Function, operands: Sequence[Operands | BlockOperands], *, training: bool) -> Calls:
    """Backward calls: the gradients of everything that has one. What the forward pass kept stays, to run again."""
    calls = []
    for one_set in operands:
        y = function(one_set, training)
        dy = torch.randn_like(y)
        calls.append(partial(torch.autograd.grad, y, one_set.differentiable(), dy, retain_graph=True))
    return calls


def copy_calls(nbytes: int, number: int, device: Device) -> Calls:
    """Plain copies that read and write so many bytes together."""
    pairs = [(_random_bytes(nbytes // 2, device), _random_bytes(nbytes // 2, device)) for _ in range(number)]
    return [partial(target.copy_, source) for target, source in pairs]


def _random_bytes(number: int, device: Device) -> Tensor:
    block = torch.randint(256, (min(number, MIB),), dtype=torch.uint8, device=device)
    return block.repeat(ceil(number / MIB))[:number]


def launch_calls(call: Call, number: int, device: Device) -> Calls:
    """One launch that was recorded on "meta", on random tensors like those of its arguments."""
    return [partial(call.kernel[call.grid], *_real(call, device), **call.options) for _ in range(number)]


def _real(call: Call, device: Device) -> list[object]:
    return [_like(argument, device) if isinstance(argument, Tensor) else argument for argument in call.arguments]


def _like(tensor: Tensor, device: Device) -> Tensor:
    """Random values above zero: variances are among them, and NaN would be no work."""
    like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return like.normal_().abs_() if tensor.is_floating_point() else like.random_()


def compiled(function: Function) -> Function:
    """`torch.compile` of a function for these very shapes; its backward can run again.

    Only the reuse of buffers that backward saw last is lost by that: masks and statistics, nothing of the size of x.
    """
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False
    result: Function = torch.compile(function, dynamic=False, fullgraph=True)
    return result


def prepared(calls: Calls, device: Device, expected_s: float) -> Timed:
    """A step of these calls after their first run: on CUDA a graph of so many that its own start does not count.

    Raises whatever the calls raise, and RuntimeError where they cannot be captured.
    """
    rotation = Rotation(calls)
    for _ in calls:
        rotation()
    if device == "cpu":
        return Timed(step=rotation)
    turns = len(calls) * max(1, ceil(GRAPH_S / (expected_s * len(calls))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(turns):
            rotation()
    return Timed(step=partial(_replay, graph, rotation), calls=turns)


def _replay(graph: torch.cuda.CUDAGraph, rotation: Rotation) -> None:
    """Replay the graph; the rotation is kept alive because it holds the memory that the graph works on."""
    del rotation
    graph.replay()


def by_turns(contenders: Mapping[Contender, Timed], device: Device, seconds: float) -> dict[Contender, Rounds]:
    """Rounds of short turns, ABBA, until the ratios are known or the time is over; ms of one call."""
    if not contenders:
        return {}
    turns: dict[str, Turn] = {name: _turn(timed, device) for name, timed in contenders.items()}
    settings = Settings(confidence=CONFIDENCE, sample_budget_s=seconds)
    taken = take(next(iter(turns)), turns, settings)
    return {name: taken[name] for name in contenders}


def _turn(timed: Timed, device: Device) -> Turn:
    """A turn of some steps, after a rehearsal that tells how many."""
    clock = CLOCKS[device]()
    step_ms = median(clock.sample(timed.step, REHEARSALS))
    steps = min(TURN_STEPS, max(1, round(TURN_S[device] * 1e3 / step_ms)))
    return lambda: [ms / timed.calls for ms in clock.sample(timed.step, steps)]
