"""A layer that can be computed in several ways and keeps the one that measures fastest on its first real input."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter_ns
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

Way = Callable[[Tensor, Tensor | None], Tensor]

_TRIALS = 7  # timed runs of each way; the median decides


class Fastest(nn.Module, ABC):
    """Base of such layers. `choice` names the way taken, `rejected` says by name why others were not tried further."""

    def __init__(self) -> None:
        super().__init__()
        self.choice = ""
        self.rejected: dict[str, str] = {}
        self._kept: dict[str, Any] = {}
        self._run: Way | None = None

    @abstractmethod
    def ways(self, x: Tensor) -> dict[str, Way]:
        """What this layer can try on inputs like x; a way raises RuntimeError where it refuses the layer or the input.

        A way takes (x, residual) and may write its output over the residual.
        """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [N, C, H, W] and residual [N, K, H', W'], channels_last -> [N, K, H', W'].

        The output may be written over the residual, which saves a buffer and its trip to memory.
        """
        if self._run is None:
            self._run = self._choose(x, residual)
        return self._run(x, residual)

    def _once(self, way: str, make: Callable[[], T]) -> T:
        """What `way` prepares at its first call and keeps; that of the ways not taken is let go."""
        if way not in self._kept:
            self._kept[way] = make()
        kept: T = self._kept[way]
        return kept

    def _choose(self, x: Tensor, residual: Tensor | None) -> Way:
        """Measure the ways on this input; the one with the smallest median time wins."""
        ways = self.ways(x)
        target = None if residual is None else residual.clone()  # the trials write over it
        accepted: dict[str, Callable[[], Tensor]] = {}
        for name, way in ways.items():
            try:
                way(x, target)
            except RuntimeError as error:
                self.rejected[name] = str(error).split("\n", 1)[0].split(". ", 1)[0]
            else:
                accepted[name] = partial(way, x, target)
        medians = _medians_ms(accepted, x.device)
        self.choice = min(medians, key=lambda name: medians[name])
        self._kept = {name: kept for name, kept in self._kept.items() if name == self.choice}
        return ways[self.choice]


def choices(model: nn.Module) -> dict[str, str]:
    """What each such layer of `model` decided at its first call, by module name."""
    return {
        name: module.choice + "".join(f"; {other} refused: {why}" for other, why in module.rejected.items())
        for name, module in model.named_modules()
        if isinstance(module, Fastest) and module.choice
    }


def _medians_ms(calls: dict[str, Callable[[], Tensor]], device: torch.device) -> dict[str, float]:
    """Median time of each call, taken in turns, so that a drift of the machine meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_TRIALS):
        for name, call in calls.items():
            _synchronize(device)
            start = perf_counter_ns()
            call()
            _synchronize(device)
            times[name].append((perf_counter_ns() - start) / 1e6)
    return {name: median(values) for name, values in times.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
