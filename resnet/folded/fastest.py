"""Layers that can be computed in several ways, and choose the one that is fastest on their first input."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor, nn

Way = Callable[[Tensor, Tensor | None], Any]  # (x, residual) -> output, which may be written over the residual
Prepare = Callable[[], Way]  # packs the weights of a way, for example

_CAPTURED = ("cuda",)  # types of device that have graphs
_TRIALS = 7  # timed runs of each way; the median decides
_OTHER_LAYERS = {"cpu": 1 << 25, "cuda": 1 << 27}  # bytes that they leave in the caches, by type of device


class Fastest(nn.Module, ABC):
    """Base class of such layers. `choice` names the chosen way, `rejected` maps the ways that failed to the reasons."""

    captured = False  # by a CUDA graph later on: then the host's time for launches does not count

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """Discard the choice; the next call chooses again."""
        self.choice = ""
        self.rejected: dict[str, str] = {}
        self._run: Way | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the choice out of copies: a way holds data packed for this layer, some of which cannot be copied."""
        return {**self.__dict__, "choice": "", "rejected": {}, "_run": None}

    @abstractmethod
    def ways(self, x: Tensor) -> dict[str, Prepare]:
        """Return a function that prepares each way to compute this layer on inputs like x, by name.

        Preparing a way, or calling it, raises RuntimeError if it does not support the layer or the input.
        """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:  # noqa: ANN401 - a tensor, unless a layer says so
        """Map x [N, C, H, W] and residual [N, K, H', W'], channels_last, to [N, K, H', W'].

        The output may be written over the residual, which saves a buffer and its memory traffic.
        """
        if self._run is None:
            self._run = self._choose(x, residual)
        return self._run(x, residual)

    def _choose(self, x: Tensor, residual: Tensor | None) -> Way:
        """Measure the ways on this input; keep the one with the smallest median time, release the others."""
        ways = self.ways(x)
        if len(ways) == 1:
            ((self.choice, prepare),) = ways.items()
            return prepare()
        target = None if residual is None else residual.clone()  # trials may write over it
        ready: dict[str, Way] = {}
        refusal: RuntimeError | None = None
        for name, prepare in ways.items():
            try:
                way = prepare()
                way(x, target)
            except torch.OutOfMemoryError:
                raise  # says nothing about the layer
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
    """Return what each such layer of `model` chose at its first call, by module name."""
    return {
        name: module.choice + "".join(f"; {other} refused: {why}" for other, why in module.rejected.items())
        for name, module in model.named_modules()
        if isinstance(module, Fastest) and module.choice
    }


def _replays(calls: Mapping[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """Capture calls that have run before as CUDA graphs; they never run concurrently, and share their memory."""
    memory = torch.cuda.graph_pool_handle()
    replays: dict[str, Callable[[], object]] = {}
    for name, call in calls.items():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory):
            call()
        replays[name] = graph.replay
    return replays


def _medians_ms(calls: Mapping[str, Callable[[], object]], inputs: list[Tensor]) -> dict[str, float]:
    """Measure the median time of each call, in turns, so that a drift of the machine affects all alike.

    Caches hold the inputs and data of other layers, as in a network: the layer before has just run, and all others have
    run since the last call of this one.
    """
    device = inputs[0].device
    other_layers = torch.ones(_OTHER_LAYERS[device.type] // 8, dtype=torch.int64, device=device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_TRIALS):
        for name, call in calls.items():
            for tensor in (other_layers, *inputs):
                tensor.sum()
            _synchronize(device)
            start = perf_counter_ns()
            call()
            _synchronize(device)
            times[name].append((perf_counter_ns() - start) / 1e6)
    return {name: median(values) for name, values in times.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
