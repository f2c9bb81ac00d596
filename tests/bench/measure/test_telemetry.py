import os
import threading
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest

from bench.machine.nvml import process_bytes, snapshot
from bench.measure.telemetry import Sampler, others, throttle_reasons
from tests.support.processes import PATIENCE_S

UUID = "GPU-0f2c1d3e-0000-1111-2222-333344445555"


class FakeError(Exception):
    pass


class FakeNvml(ModuleType):
    """One GPU with settable sensors, and a count of init calls that were not shut down."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVMLError = FakeError

    def __init__(self, **broken: str) -> None:
        super().__init__("fake_nvml")
        self.broken = broken
        self.open = 0
        self.clocks = {1: 1980, 2: 3201}
        self.reasons = 0x0
        self.pids: dict[int, int | None] = {}
        self.energy = iter((1_000_000, 1_600_000))
        self.power = 650_000
        self.ticked = threading.Event()

    def __getattribute__(self, name: str) -> object:
        if name.startswith("nvml") and name in object.__getattribute__(self, "broken"):
            return _raise
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != UUID:
            raise FakeError
        return "handle"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        assert index == 0
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        assert handle == "handle"
        return self.clocks[kind]

    def nvmlDeviceGetPowerUsage(self, _handle: str) -> int:  # noqa: N802
        return self.power

    def nvmlDeviceGetTemperature(self, _handle: str, _sensor: int) -> int:  # noqa: N802
        return 61

    def nvmlDeviceGetCurrentClocksEventReasons(self, _handle: str) -> int:  # noqa: N802
        self.ticked.set()
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: str) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.pids.items()]

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: str) -> int:  # noqa: N802
        return next(self.energy)


def _raise(*_: object) -> None:
    raise FakeError


def sampled(nvml: FakeNvml, during: Callable[[], None] | None = None, before: frozenset[int] = frozenset()) -> Sampler:
    with Sampler(UUID, nvml=nvml, interval_s=0.001, before=before) as sampler:
        assert nvml.ticked.wait(timeout=PATIENCE_S)
        if during is not None:
            during()
    return sampler


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (0x0, ()),
        (0x1 | 0x2 | 0x100, ()),  # idle and clock settings are not throttling
        (0x4, ("software power cap",)),
        (0x8 | 0x40, ("hardware slowdown", "hardware thermal slowdown")),
        (0x1 | 0x20 | 0x80, ("software thermal slowdown", "hardware power brake")),
    ],
)
def test_throttle_reasons_name_the_bits_that_hold_clocks_down(bits: int, names: tuple[str, ...]) -> None:
    assert throttle_reasons(bits) == names


def test_throttle_bits_are_those_of_nvml() -> None:
    pynvml = pytest.importorskip("pynvml")
    assert throttle_reasons(pynvml.nvmlClocksEventReasonSwPowerCap) == ("software power cap",)
    assert throttle_reasons(pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown) == ("hardware power brake",)
    assert throttle_reasons(pynvml.nvmlClocksEventReasonSwThermalSlowdown) == ("software thermal slowdown",)
    assert throttle_reasons(pynvml.nvmlClocksEventReasonHwThermalSlowdown) == ("hardware thermal slowdown",)
    assert throttle_reasons(pynvml.nvmlClocksEventReasonHwSlowdown) == ("hardware slowdown",)
    assert throttle_reasons(pynvml.nvmlClocksEventReasonSyncBoost) == ("sync boost",)


def test_the_real_binding_has_every_name_that_is_used() -> None:
    pynvml = pytest.importorskip("pynvml")
    used = [name for name in vars(FakeNvml) if name.startswith(("nvml", "NVML"))]
    assert [name for name in used if not hasattr(pynvml, name)] == []


@pytest.mark.parametrize(
    ("pids", "before", "expected"),
    [
        ({10}, set(), 0),  # our own pid, listed
        ({10, 11}, set(), 1),
        ({10, 11}, {11}, 1),
        ({500}, set(), 0),  # hidden: the one newcomer is us
        ({500, 501}, set(), 1),
        ({400, 500}, {400}, 1),  # there before us
        ({400}, {400}, 1),  # we are not listed at all
        (set(), {400}, 0),  # gone since
    ],
)
def test_others(pids: set[int], before: set[int], expected: int) -> None:
    assert others(frozenset(pids), frozenset(before), own_pid=10) == expected


def test_result_is_the_median_of_the_readings_in_plain_units() -> None:
    nvml = FakeNvml()
    sampler = sampled(nvml)
    telemetry = sampler.result(steps=40, seconds=3.0)
    assert telemetry is not None
    assert (telemetry.sm_clock_mhz, telemetry.memory_clock_mhz) == (1980.0, 3201.0)
    assert (telemetry.power_w, telemetry.temperature_c) == (650.0, 61.0)
    assert (telemetry.throttle_reasons, telemetry.other_processes) == ((), 0)
    assert (telemetry.energy_j, telemetry.energy_steps) == (600.0, 40)
    assert nvml.open == 0


def test_energy_needs_a_window_of_two_seconds() -> None:
    telemetry = sampled(FakeNvml()).result(steps=40, seconds=1.9)
    assert telemetry is not None
    assert (telemetry.energy_j, telemetry.energy_steps) == (None, 0)


def test_energy_is_optional() -> None:
    nvml = FakeNvml(nvmlDeviceGetTotalEnergyConsumption="not supported")
    telemetry = sampled(nvml).result(steps=40, seconds=3.0)
    assert telemetry is not None
    assert telemetry.energy_j is None
    assert telemetry.power_w == 650.0


def test_a_throttle_reason_seen_once_is_kept() -> None:
    nvml = FakeNvml()

    def throttle_for_a_moment() -> None:
        for reasons in (0x4, 0x0):
            nvml.reasons = reasons
            for _ in range(3):  # a read may be under way with the old value
                nvml.ticked.clear()
                assert nvml.ticked.wait(timeout=PATIENCE_S)

    telemetry = sampled(nvml, throttle_for_a_moment).result(steps=1, seconds=1.0)
    assert telemetry is not None
    assert telemetry.throttle_reasons == ("software power cap",)


def test_other_processes_are_counted() -> None:
    nvml = FakeNvml()
    nvml.pids = {os.getpid() + 1_000_000: None, 7: None}
    telemetry = sampled(nvml, before=frozenset({7})).result(steps=1, seconds=1.0)
    assert telemetry is not None
    assert telemetry.other_processes == 1


def test_a_block_shorter_than_a_tick_is_read_at_its_end() -> None:
    with Sampler(UUID, nvml=FakeNvml(), interval_s=60.0) as sampler:
        pass
    telemetry = sampler.result(steps=1, seconds=0.01)
    assert telemetry is not None
    assert telemetry.sm_clock_mhz == 1980.0


@pytest.mark.parametrize(
    "name",
    [
        "nvmlInit",
        "nvmlDeviceGetHandleByUUID",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetCurrentClocksEventReasons",
    ],
)
def test_a_sensor_that_cannot_be_read_gives_no_telemetry(name: str) -> None:
    nvml = FakeNvml(**{name: "not supported"})
    with Sampler(UUID, nvml=nvml, interval_s=0.001) as sampler:
        time.sleep(0.02)
    assert sampler.result(steps=1, seconds=3.0) is None
    assert nvml.open == 0


def test_snapshot_lists_every_pid_and_is_empty_without_nvml() -> None:
    nvml = FakeNvml()
    nvml.pids = {7: 1, 9: None}
    assert snapshot(nvml) == {7, 9}
    assert nvml.open == 0
    assert snapshot(FakeNvml(nvmlInit="no driver")) == frozenset()


def test_process_bytes_is_ours_or_none() -> None:
    nvml = FakeNvml()
    nvml.pids = {7: 5, os.getpid(): 1 << 30}
    assert process_bytes(UUID, nvml) == 1 << 30
    nvml.pids = {7: 5}
    assert process_bytes(UUID, nvml) is None
    nvml.pids = {os.getpid(): None}
    assert process_bytes(UUID, nvml) is None
    assert process_bytes("GPU-another", nvml) is None
    assert nvml.open == 0
