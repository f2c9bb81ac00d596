"""Statistics against brute force, against simulated truth, and on inputs that are no samples."""

from fractions import Fraction
from math import comb, inf, log, nan
from random import Random
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.stats import (
    MINIMUM_SAMPLES,
    _rank,
    converged,
    is_steady,
    median_interval,
    percentile,
    speedups,
)

times = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200)


@given(n=st.integers(1, 400), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_ranks_are_those_of_exact_binomial_arithmetic(n: int, confidence: float) -> None:
    tail = Fraction(1 - confidence) / 2
    below, k = Fraction(0), 0
    while below + Fraction(comb(n, k), 2**n) <= tail:
        below += Fraction(comb(n, k), 2**n)
        k += 1
    assert _rank(n, confidence) == max(1, k)


def test_the_ranks_of_many_samples_are_those_of_the_normal_approximation() -> None:
    n = 1_000_000
    assert _rank(n, 0.95) == pytest.approx((n + 1) / 2 - 1.959964 * n**0.5 / 2, abs=2)


def test_known_ranks() -> None:
    interval = median_interval(np.arange(25, 0, -1))  # 8th and 18th of 25: 95.7 % (Conover, table A3)
    assert (interval.low, interval.median, interval.high) == (8, 13, 18)


@pytest.mark.parametrize("n", [25, 100, 1001])
@pytest.mark.parametrize("distribution", ["lognormal", "exponential", "bimodal"])
def test_the_median_interval_covers_the_true_median(n: int, distribution: str) -> None:
    generator = np.random.default_rng(n)
    trials = 1000
    match distribution:
        case "lognormal":
            draws, truth = generator.lognormal(0, 0.5, (trials, n)), 1.0
        case "exponential":
            draws, truth = generator.exponential(1, (trials, n)), log(2)
        case _:
            modes = np.where(generator.random((trials, n)) < 0.7, 1.0, 3.0)
            draws, truth = generator.normal(modes, 0.05), 1.0 + 0.05 * NormalDist().inv_cdf(0.5 / 0.7)
    covered = sum(interval.low <= truth <= interval.high for interval in map(median_interval, draws))
    assert 0.93 <= covered / trials <= 0.98


@given(samples=times, power=st.integers(-10, 10))
def test_intervals_scale_with_the_unit(samples: list[float], power: int) -> None:
    scale = 2.0**power
    interval, scaled = median_interval(samples), median_interval(np.multiply(samples, scale))
    assert (scaled.low, scaled.median, scaled.high) == (
        interval.low * scale,
        interval.median * scale,
        interval.high * scale,
    )


@given(samples=times, shuffled=st.randoms())
def test_intervals_hold_their_median_and_ignore_the_order(samples: list[float], shuffled: Random) -> None:
    interval = median_interval(samples)
    assert min(samples) <= interval.low <= interval.median <= interval.high <= max(samples)
    assert interval.median == np.median(samples)
    again = shuffled.sample(samples, len(samples))
    assert median_interval(again) == interval


def test_more_confidence_is_a_wider_interval() -> None:
    samples = np.random.default_rng(0).lognormal(size=200)
    widths = [
        interval.high - interval.low for interval in (median_interval(samples, confidence=c) for c in (0.5, 0.95, 0.99))
    ]
    assert widths == sorted(widths)
    assert len(set(widths)) == 3


def test_converged_at_the_half_width_of_the_interval_and_not_before() -> None:
    samples = np.linspace(0.9, 1.1, 101)  # 95 %: the 41st and the 61st of 101, 0.98 and 1.02
    assert converged(samples, 0.0201)
    assert not converged(samples, 0.0199)
    assert converged(samples * 1e-3, 0.0201)


def test_too_few_samples_never_converge() -> None:
    assert not converged([], 0.5)
    assert not converged([1.0] * (MINIMUM_SAMPLES - 1), 0.5)
    assert converged([1.0] * MINIMUM_SAMPLES, 0.0)


def test_steady_when_the_last_two_windows_agree() -> None:
    assert not is_steady([], 2, 0.5)
    assert not is_steady([1, 1, 1], 2, 0.5)
    assert is_steady([9, 9, 9, 1.00, 1.00, 1.00, 1.01, 1.01, 1.01], 3, 0.0101)
    assert not is_steady([9, 9, 9, 1.00, 1.00, 1.00, 1.02, 1.02, 1.02], 3, 0.0101)
    assert not is_steady([1.02, 1.02, 1.02, 1.00, 1.00, 1.00], 3, 0.0101)  # falling is as unsteady as rising
    assert is_steady([1, 1, 7, 1, 1, 7], 3, 0.0)  # a spike is not the median


def test_percentiles_where_there_are_samples_for_them() -> None:
    hundred = np.arange(1, 101)
    assert percentile(hundred, 99) == pytest.approx(99.01)
    assert percentile(hundred[:99], 99) is None
    assert percentile(hundred, 1) == pytest.approx(1.99)
    assert percentile(hundred[:10], 10) == pytest.approx(1.9)
    assert percentile(hundred[:10], 90) == pytest.approx(9.1)
    assert percentile(hundred[:9], 90) is None
    assert percentile([1, 2], 50) == 1.5
    assert percentile([1], 50) is None
    assert percentile(np.arange(1000), 99.9) == pytest.approx(998.001)
    assert percentile(np.arange(999), 99.9) is None


NOT_SAMPLES = [[], [[1.0, 2.0]], [1.0, nan], [1.0, inf], 1.0]
NOT_TIMES = [*NOT_SAMPLES, [1.0, 0.0], [1.0, -1.0]]


@pytest.mark.parametrize("bad", NOT_SAMPLES)
def test_what_is_no_sample_is_refused(bad: npt.ArrayLike) -> None:
    with pytest.raises(ValueError, match="samples"):
        median_interval(bad)
    with pytest.raises(ValueError, match="samples"):
        percentile(bad, 50)


@pytest.mark.parametrize("bad", NOT_TIMES)
def test_what_is_no_time_is_refused(bad: npt.ArrayLike) -> None:
    with pytest.raises(ValueError, match="samples"):
        speedups([bad], [[1.0]])
    with pytest.raises(ValueError, match="samples"):
        speedups([[1.0]], [bad])


@pytest.mark.parametrize("bad", [nan, inf, 0.0, -1.0])
def test_a_stop_rule_refuses_what_is_no_time(bad: float) -> None:
    samples = [*[1.0] * MINIMUM_SAMPLES, bad]
    with pytest.raises(ValueError, match="samples"):
        converged(samples, 0.1)
    with pytest.raises(ValueError, match="samples"):
        is_steady(samples, 2, 0.1)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_a_confidence_is_between_0_and_1(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        median_interval([1.0], confidence=confidence)


@pytest.mark.parametrize("q", [0, 100, -1, 101])
def test_a_percentile_is_between_0_and_100(q: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile([1.0] * 1000, q)


def test_a_window_holds_a_sample() -> None:
    with pytest.raises(ValueError, match="window"):
        is_steady([1.0, 1.0], 0, 0.1)


# --- speed-ups by rounds ----------------------------------------------------------------------------------------------


def test_a_speedup_a_round() -> None:
    found = speedups([(3.0, 1.0, 2.0), (8.0,)], [(1.0,), (3.0, 1.0)])
    assert found.tolist() == [2.0, 4.0], "medians of the turns"


def test_a_drift_falls_on_both_turns_of_a_round() -> None:
    slowness = [1.0, 1.0, 1.5, 4.0, 3.0, 2.0]
    assert set(speedups([(6 * by,) for by in slowness], [(4 * by,) for by in slowness])) == {1.5}


@pytest.mark.parametrize(
    ("baseline", "candidate", "told"),
    [
        ([(1.0,)], [], "shorter"),
        ([()], [(1.0,)], "samples"),
        ([(1.0,)], [(0.0,)], "samples"),
        ([(nan,)], [(1.0,)], "samples"),
    ],
)
def test_rounds_without_a_time_for_both_are_refused(
    baseline: list[tuple[float, ...]], candidate: list[tuple[float, ...]], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        speedups(baseline, candidate)
