"""NVML beside the samples: clocks, power, temperature, throttle reasons, other processes, energy. Worker side.

Every function takes the NVML binding as an argument, so that tests run against a fake one.
"""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from types import ModuleType, TracebackType
from typing import Any, Self

import pynvml

from bench.machine.nvml import pids_on
from bench.types import Telemetry

INTERVAL_S = 0.1
PROCESS_TICKS = 10  # listing processes takes driver locks for longer than a sensor read: once a second is enough
ENERGY_WINDOW_S = 2.0  # the counter advances in steps of up to 0.1 s: 5 % of this window

# nvmlClocksEventReasons* of nvml.h. Left out on purpose, because they are settings and not throttling: idle (0x1),
# applications clocks (0x2), display clocks (0x100).
THROTTLE_REASONS: dict[int, str] = {
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x200: "board limit",
    0x400: "reliability voltage",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One tick of the sampler."""

    sm_clock_mhz: float
    memory_clock_mhz: float
    power_w: float
    temperature_c: float
    throttle_bits: int


def throttle_reasons(bits: int) -> tuple[str, ...]:
    """Names of the bits that mean the clocks were held down."""
    return tuple(name for bit, name in THROTTLE_REASONS.items() if bits & bit)


def others(pids: frozenset[int], before: frozenset[int], own_pid: int) -> int:
    """The number of the pids on a device that are not this process.

    A container hides our own pid behind the host's: then one newcomer since `before` is taken to be us.
    """
    if own_pid in pids:
        return len(pids) - 1
    return len(pids & before) + max(0, len(pids - before) - 1)


class Sampler:
    """Reads a GPU's sensors ten times a second in a thread while a `with` block runs.

    Without NVML, or where a sensor is not supported, the block runs all the same and `result` is None.
    """

    def __init__(
        self,
        uuid: str,
        *,
        before: frozenset[int] = frozenset(),
        interval_s: float = INTERVAL_S,
        nvml: ModuleType = pynvml,
    ) -> None:
        """Args: `uuid` from `gpu_uuid`, `before` from `snapshot`."""
        self._uuid = uuid
        self._before = before
        self._interval_s = interval_s
        self._nvml = nvml
        self._handle: Any = None
        self._readings: list[Reading] = []
        self._others = 0
        self._energy_mj: tuple[int | None, int | None] = (None, None)
        self._failed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nvml-sampler", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError:
            self._failed = True
            return self
        try:
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(self._uuid)
        except self._nvml.NVMLError:
            self._failed = True
            self._nvml.nvmlShutdown()
            return self
        self._energy_mj = (self._energy(), None)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handle is None:
            return
        self._stop.set()
        self._thread.join()
        self._energy_mj = (self._energy_mj[0], self._energy())
        if not self._readings:  # shorter than one tick: the clocks have not dropped yet
            self._tick(0)
        self._nvml.nvmlShutdown()

    def result(self, steps: int, seconds: float) -> Telemetry | None:
        """Medians over the block, which ran `steps` steps in `seconds`. None if a sensor could not be read."""
        if self._failed or not self._readings:
            return None
        bits = 0
        for reading in self._readings:
            bits |= reading.throttle_bits
        start, end = self._energy_mj
        joules = None if start is None or end is None or seconds < ENERGY_WINDOW_S else (end - start) / 1e3
        return Telemetry(
            sm_clock_mhz=median(reading.sm_clock_mhz for reading in self._readings),
            memory_clock_mhz=median(reading.memory_clock_mhz for reading in self._readings),
            power_w=median(reading.power_w for reading in self._readings),
            temperature_c=median(reading.temperature_c for reading in self._readings),
            throttle_reasons=throttle_reasons(bits),
            other_processes=self._others,
            energy_j=joules,
            energy_steps=0 if joules is None else steps,
        )

    def _run(self) -> None:
        tick = 0
        while not self._failed and not self._stop.wait(self._interval_s):
            self._tick(tick)
            tick += 1

    def _tick(self, tick: int) -> None:
        try:
            self._readings.append(_read(self._nvml, self._handle))
        except self._nvml.NVMLError:
            self._failed = True
            return
        if tick % PROCESS_TICKS == 0:
            with suppress(self._nvml.NVMLError):  # vGPUs list no processes: none are seen
                pids = frozenset(pids_on(self._nvml, self._handle))
                self._others = max(self._others, others(pids, self._before, os.getpid()))

    def _energy(self) -> int | None:
        with suppress(self._nvml.NVMLError):  # counted from Volta on
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        return None


def _read(nvml: ModuleType, handle: object) -> Reading:
    return Reading(
        sm_clock_mhz=float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        memory_clock_mhz=float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        temperature_c=float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        throttle_bits=int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
    )
