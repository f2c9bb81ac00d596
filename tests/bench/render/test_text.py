"""Values and reasons as text."""

import pytest

from bench.render import text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.significant(1234.5), "1,234"),
        (text.significant(12.345), "12.3"),
        (text.significant(0.0012345), "0.00123"),
        (text.significant(0.0), "0"),
        (text.significant(None), text.MISSING),
        (text.size(512), "512 B"),
        (text.size(46_779_648), "44.6 MiB"),
        (text.size(3 << 30), "3.00 GiB"),
        (text.rate(989e12, "FLOP/s"), "989 TFLOP/s"),
        (text.ratio(2.314, 2.281, 2.339), "2.31x [2.28, 2.34]"),
        (text.ratio(1.0, 1.0, 1.0), "1.00x"),
        (text.ratio(None), text.MISSING),
        (text.interval(2345.0, 2331.0, 2360.0), "2,345 [2,331, 2,360]"),
        (text.spread(2345.0, 2331.2, 2360.0), "2,345 ±15"),
        (text.spread(31.4, 31.38, 31.41), "31.4 ±0.1"),
        (text.spread(None, None, None), text.MISSING),
        (text.ratio_spread(2.31, 2.28, 2.335), "2.31x ±0.03"),
        (text.ratio_spread(1.0, 1.0, 1.0), "1.00x"),
        (text.ratio_spread(None, None, None), text.MISSING),
        (text.percent(12.34), "12 %"),
        (text.percent(2.34), "2.3 %"),
        (text.steps(float("inf")), "never"),
        (text.steps(5000.0), "5,000"),
        (text.scientific(0.00123), "1.2e-03"),
        (text.scientific(float("inf")), "inf"),
        (text.prose("a | <b>\n  c"), "a \\| &lt;b> c"),
        (text.listing(["a", "b", "c"]), "a, b and c"),
        (text.count(1, "case"), "1 case"),
    ],
)
def test_values_as_text(shown: str, expected: str) -> None:
    assert shown == expected


def test_long_reasons_are_cut_with_a_sign() -> None:
    shown = text.prose("word " * 1000)
    assert len(shown) <= text.REASON_WIDTH
    assert shown.endswith("…")
