"""A layer that can be computed in several ways and keeps the one that measures fastest on its first real input."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor, nn

Way = Callable[[Tensor, Tensor | None], Any]  # (x, residual) -> output, which may be written over the residual
Prepare = Callable[[], Way]  # packs what the way needs

_CAPTURED = ("cuda",)  # devices that have graphs
_TRIALS = 7  # timed runs of each way; the median decides
_OTHER_LAYERS = {"cpu": 1 << 25, "cuda": 1 << 27}  # bytes: what they leave in the caches of that type of device


class Fastest(nn.Module, ABC):
    """Base of such layers. `choice` names the way taken, `rejected` says by name why others were not tried further."""

    captured = False  # by a CUDA graph later on: what launches cost the host then does not count

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """Choose anew at the next call."""
        self.choice = ""
        self.rejected: dict[str, str] = {}
        self._run: Way | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy chooses anew: a way holds what was packed for this layer, and some of it cannot be copied."""
        return {**self.__dict__, "choice": "", "rejected": {}, "_run": None}

    @abstractmethod
    def ways(self, x: Tensor) -> dict[str, Prepare]:
        """What prepares each way that this layer can try on inputs like x, by name.

        Preparing, or the way itself, raises RuntimeError where it refuses the layer or the input.
        """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:  # noqa: ANN401 - a tensor, unless a layer says so
        """x [N, C, H, W] and residual [N, K, H', W'], channels_last -> [N, K, H', W'].

        The output may be written over the residual, which saves a buffer and its trip to memory.
        """
        if self._run is None:
            self._run = self._choose(x, residual)
        return self._run(x, residual)

    def _choose(self, x: Tensor, residual: Tensor | None) -> Way:
        """Measure the ways on this input; the one with the smallest median time wins, the others are let go."""
        ways = self.ways(x)
        if len(ways) == 1:
            ((self.choice, prepare),) = ways.items()
            return prepare()
        target = None if residual is None else residual.clone()  # the trials write over it
        ready: dict[str, Way] = {}
        refusal: RuntimeError | None = None
        for name, prepare in ways.items():
            try:
                way = prepare()
                way(x, target)
            except torch.OutOfMemoryError:
                raise  # it says nothing of the layer
            except RuntimeError as error:
                refusal = error
                self.rejected[name] = str(error).split("\n", 1)[0].split(". ", 1)[0]
            else:
                ready[name] = way
        if not ready:
            assert refusal is not None  # noqa: S101 - every layer has a way
            raise refusal
        inputs = [x] if target is None else [x, target]
        calls: dict[str, Callable[[], object]] = {name: partial(way, x, target) for name, way in ready.items()}
        if self.captured and x.device.type in _CAPTURED:
            calls = _replays(calls)
        medians = _medians_ms(calls, inputs)
        self.choice = min(medians, key=lambda name: medians[name])
        return ready[self.choice]


def choices(model: nn.Module) -> dict[str, str]:
    """What each such layer of `model` decided at its first call, by module name."""
    return {
        name: module.choice + "".join(f"; {other} refused: {why}" for other, why in module.rejected.items())
        for name, module in model.named_modules()
        if isinstance(module, Fastest) and module.choice
    }


def _replays(calls: Mapping[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """The same calls, which have run before, as CUDA graphs: they never run at a time, and share their memory."""
    memory = torch.cuda.graph_pool_handle()
    found: dict[str, Callable[[], object]] = {}
    for name, call in calls.items():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory):
            call()
        found[name] = graph.replay
    return found


def _medians_ms(calls: Mapping[str, Callable[[], object]], inputs: list[Tensor]) -> dict[str, float]:
    """Median time of each call, taken in turns, so that a drift of the machine meets all alike.

    With cold caches but for the inputs, as in a network: the layer before has just run, and since the last call of this
    one all the others.
    """
    device = inputs[0].device
    others = torch.ones(_OTHER_LAYERS[device.type] // 8, dtype=torch.int64, device=device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_TRIALS):
        for name, call in calls.items():
            for read in (others, *inputs):
                read.sum()
            _synchronize(device)
            start = perf_counter_ns()
            call()
            _synchronize(device)
            times[name].append((perf_counter_ns() - start) / 1e6)
    return {name: median(values) for name, values in times.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
