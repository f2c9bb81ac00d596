"""Results beside their eager baselines and the device's ceilings. Imports no torch.

No path whose parity failed has a speed: every figure that derives from the samples goes through `Row.timed`.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, inf

from bench.stats import Interval, median_interval, percentile, speedups
from bench.types import (
    MARKS,
    Case,
    Ceilings,
    Cost,
    Measurement,
    Memory,
    ParityResult,
    Result,
    Run,
    Status,
    Telemetry,
)
from resnet.paths import PATHS_BY_NAME

BASELINE = "eager"
MEASURED_PHASES = frozenset({"warm-up", "sampling", "turns"})  # the rest of a case's wall time is overhead

TIMED_STATUSES = MARKS | {Status.VALID}  # whose figures stand


# No slots: cached_property keeps its values in the instance's dictionary.
@dataclass(frozen=True, kw_only=True)
class Row:
    """A result in its context. Times in milliseconds unless named otherwise; None: not known."""

    result: Result
    ceilings: Ceilings | None = None
    eager: "Row | None" = None  # the eager row of the same cell, which may be this very case
    eager_fp32: "Row | None" = None

    @property
    def case(self) -> Case:
        return self.result.case

    @property
    def measurement(self) -> Measurement | None:
        return self.result.measurement

    @property
    def timed(self) -> Measurement | None:
        """The measurement, if its samples may be shown as a speed."""
        stands = self.result.status in TIMED_STATUSES and self.parity != "fail"
        return self.measurement if stands and self.measurement and self.measurement.samples_ms else None

    @property
    def memory(self) -> Memory:
        return self.measurement.memory if self.measurement else Memory()

    @property
    def telemetry(self) -> Telemetry | None:
        return self.measurement.telemetry if self.measurement else None

    @property
    def cost(self) -> Cost | None:
        return self.result.cost

    @property
    def checked(self) -> ParityResult | None:
        return self.result.parity

    @property
    def parity(self) -> str:
        if self.checked is None:
            return "fail" if self.result.status is Status.PARITY_FAILED else ""
        return "pass" if self.checked.passed and self.result.status is not Status.PARITY_FAILED else "fail"

    @property
    def batch_size(self) -> int | None:
        return self.result.max_batch_size if self.case.kind == "max-batch" else self.case.batch_size

    @cached_property
    def step(self) -> Interval | None:
        """Median step time with its interval."""
        return median_interval(self.timed.samples_ms) if self.timed else None

    @property
    def throughput(self) -> Interval | None:
        """Images per second."""
        if self.step is None:
            return None
        images = self.case.batch_size * 1e3
        step = self.step
        return Interval(low=images / step.high, median=images / step.median, high=images / step.low)

    @property
    def sample_count(self) -> int | None:
        return len(self.timed.samples_ms) if self.timed else None

    @property
    def p10(self) -> float | None:
        return self._percentile(10)

    @property
    def p90(self) -> float | None:
        return self._percentile(90)

    @property
    def p99(self) -> float | None:
        return self._percentile(99)

    def _percentile(self, q: float) -> float | None:
        return percentile(self.timed.samples_ms, q) if self.timed else None

    @property
    def confidence_percent(self) -> float | None:
        return 50 * (self.step.high - self.step.low) / self.step.median if self.step else None

    @cached_property
    def speedup(self) -> Interval | None:
        return self._speedup_over(self.eager)

    @cached_property
    def speedup_fp32(self) -> Interval | None:
        return self._speedup_over(self.eager_fp32)

    def _speedup_over(self, baseline: "Row | None") -> Interval | None:
        """The speed-up by turns (`bench.run.against_eager`): samples of two rows lie minutes apart, and tell less."""
        if baseline is None or baseline.timed is None or self.timed is None:
            return None
        if baseline.case == self.case:  # 1 by definition, not a comparison of two measurements
            return Interval(low=1.0, median=1.0, high=1.0)
        turns = self.timed.turns
        if baseline.case.key not in turns:
            return None
        return median_interval(speedups(turns[baseline.case.key], turns[self.case.key]))

    @property
    def break_even_steps(self) -> float | None:
        path = PATHS_BY_NAME.get(self.case.path)
        if path is None or not (path.compile_mode or path.cuda_graph):
            return None
        if not (self.timed and self.step and self.speedup and self.eager and self.eager.timed):
            return None
        saved_ms = self.step.median * (self.speedup.median - 1)
        if saved_ms <= 0:
            return inf
        spent_ms = 1e3 * (self.timed.first_call_s - self.eager.timed.first_call_s)
        return float(max(0, ceil(spent_ms / saved_ms)))

    @property
    def peak_ratio(self) -> float | None:
        mine = self.memory.peak_allocated_bytes
        baseline = self.eager.memory.peak_allocated_bytes if self.eager else None
        return mine / baseline if mine is not None and baseline else None

    @property
    def _matmul_flops_per_s(self) -> float | None:
        return self.ceilings.matmul_flops_per_s.get(self.case.precision) if self.ceilings else None

    @property
    def floor_ms(self) -> float | None:
        if not (self.cost and self.ceilings and self._matmul_flops_per_s):
            return None
        compute_s = self.cost.flops / self._matmul_flops_per_s
        traffic_s = self.cost.bytes / self.ceilings.copy_bytes_per_s
        return max(compute_s, traffic_s) * 1e3

    @property
    def floor_percent(self) -> float | None:
        return 100 * self.floor_ms / self.step.median if self.floor_ms is not None and self.step else None

    @property
    def mfu(self) -> float | None:
        if not (self.cost and self.step and self._matmul_flops_per_s):
            return None
        return self.cost.flops / (self.step.median / 1e3) / self._matmul_flops_per_s

    @property
    def joules_per_image(self) -> float | None:
        telemetry = self.telemetry
        if not (self.timed and telemetry and telemetry.energy_j is not None and telemetry.energy_steps):
            return None
        return telemetry.energy_j / (telemetry.energy_steps * self.case.batch_size)

    @property
    def throttle_reasons(self) -> str:
        return "; ".join(self.telemetry.throttle_reasons) if self.telemetry else ""

    @property
    def start_up_s(self) -> float | None:
        return self.result.phases_s.get("start-up")

    @property
    def overhead_s(self) -> float | None:
        phases = self.result.phases_s
        return sum(seconds for phase, seconds in phases.items() if phase not in MEASURED_PHASES) if phases else None


def wall_and_measured_s(run: Run) -> tuple[float, float]:
    """Wall seconds of all sittings, and those in measured phases: their ratio is the harness overhead."""
    wall_s = sum(session.wall_s for session in run.sessions)
    return wall_s, sum(result.phases_s.get(phase, 0.0) for result in run.results for phase in MEASURED_PHASES)


def rows(run: Run) -> list[Row]:
    """Every result of the run, in its order, beside its eager baselines."""
    plain = [Row(result=result, ceilings=run.ceilings) for result in run.results]
    eager = {row.case: row for row in plain if row.case.path == BASELINE and row.case.kind == "measure"}
    return [
        replace(
            row,
            eager=eager.get(replace(row.case, path=BASELINE)),
            eager_fp32=eager.get(replace(row.case, path=BASELINE, precision="fp32")),
        )
        for row in plain
    ]
