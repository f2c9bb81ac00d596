"""Statistics of samples of a time: medians, their intervals, and when to stop. numpy only, pure functions.

Samples are times of one step in any one unit, in the order they were taken. The intervals hold for independent
samples; a drifting clock makes them too narrow, which is why speed-ups are measured by turns (`speedups`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

FEWEST_SAMPLES = 6  # below it a 95 % interval of a median does not exist
MINIMUM_SAMPLES = 10  # before sampling may stop early: the range of fewer can be narrow by luck

Samples = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A median with its confidence interval, in the unit of the samples."""

    low: float
    median: float
    high: float


def median_interval(samples: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """The median and the interval between two order statistics that covers the true median.

    Distribution-free and exact for every n: x(k) .. x(n-k+1) with the largest k whose P(Binomial(n, 1/2) < k) is at
    most (1 - confidence) / 2 (Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2; Le Boudec,
    Performance Evaluation of Computer and Communication Systems, theorem 2.1). A percentile bootstrap approximates
    this interval. Where there are too few samples for the confidence (below 6 for 95 %)
    it is the whole range, which covers the median less often than asked for: see `FEWEST_SAMPLES`.

    Raises:
        ValueError: no samples, samples that are not finite numbers, or a confidence outside (0, 1).
    """
    ordered = np.sort(_checked(samples))
    rank = _rank(len(ordered), confidence)
    return Interval(low=float(ordered[rank - 1]), median=float(np.median(ordered)), high=float(ordered[-rank]))


def speedups(baseline: Sequence[npt.ArrayLike], candidate: Sequence[npt.ArrayLike]) -> Samples:
    """The speed-up of each round: median of the baseline's turn over that of the candidate's.

    The two turns of a round are neighbours in time, so that what slows the machine for longer than a round falls on
    both and cancels; `median_interval` of the rounds is the interval of the speed-up. Above 1: the candidate is faster.

    Raises:
        ValueError: not one turn of each in every round, or samples that are not finite and above 0.
    """
    pairs = zip(baseline, candidate, strict=True)
    return np.array([np.median(_checked_times(over)) / np.median(_checked_times(under)) for over, under in pairs])


def converged(samples: npt.ArrayLike, target: float, *, least: int = MINIMUM_SAMPLES) -> bool:
    """Whether the 95 % interval of the median has a half-width of at most `target` relative to the median.

    False with fewer than `least` samples, or none: `FEWEST_SAMPLES` to judge those of a sampling that is over. Cheap
    enough to ask after every few samples: one sort.

    Raises:
        ValueError: samples that are not finite and above 0.
    """
    if np.size(samples) < least:
        return False
    interval = median_interval(_checked_times(samples))
    return (interval.high - interval.low) / 2 <= target * interval.median


def is_steady(samples: npt.ArrayLike, window: int, tolerance: float) -> bool:
    """Whether the medians of the last two windows of `window` samples differ by at most `tolerance`, relatively.

    The earlier window is the measure. False while there are fewer than two windows, or no samples.

    Raises:
        ValueError: samples that are not finite and above 0, or a window below 1.
    """
    if window < 1:
        raise ValueError(f"a window of {window} samples: it takes at least 1")
    if np.size(samples) < 2 * window:
        return False
    times = _checked_times(samples)
    before, now = np.median(times[-2 * window : -window]), np.median(times[-window:])
    return bool(abs(now - before) <= tolerance * before)


def percentile(samples: npt.ArrayLike, q: float) -> float | None:
    """The q-th percentile, 0 < q < 100, by linear interpolation (Hyndman and Fan, 1996, type 7).

    None where not even one sample is expected beyond it: p10 and p90 take 10 samples, p99 takes 100, p50 takes 2.

    Raises:
        ValueError: no samples, samples that are not finite numbers, or q outside (0, 100).
    """
    values = _checked(samples)
    if not 0 < q < 100:  # noqa: PLR2004 per cent
        raise ValueError(f"percentile {q}: it lies between 0 and 100, both excluded")
    beyond = round(len(values) * min(q, 100 - q), 6)  # hundredths of samples; 100 - 99.9 is not exact
    return float(np.percentile(values, q)) if beyond >= 100 else None  # noqa: PLR2004


def _rank(n: int, confidence: float) -> int:
    """The largest k from 1 with P(Binomial(n, 1/2) < k) <= (1 - confidence) / 2, from logarithms: exact for any n."""
    i = np.arange(1, n // 2 + 1)
    log_coefficients = np.concatenate(([0.0], np.cumsum(np.log((n - i + 1) / i))))
    below = np.cumsum(np.exp(log_coefficients - n * log(2)))  # P(Binomial < k) for k = 1, 2, ...
    return max(1, int(np.count_nonzero(below <= _tail(confidence))))


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence}: it lies between 0 and 1, both excluded")
    return (1 - confidence) / 2


def _checked(samples: npt.ArrayLike) -> Samples:
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"samples of shape {values.shape}: expected a sequence of at least one number")
    if not np.isfinite(values).all():
        raise ValueError("the samples hold a NaN or an infinity: a time is finite")
    return values


def _checked_times(samples: npt.ArrayLike) -> Samples:
    times = _checked(samples)
    if times.min() <= 0:
        raise ValueError(f"the samples hold {times.min()}: a time is above 0")
    return times
