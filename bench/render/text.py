"""Raw values as text for people: the only place where figures are rounded and scaled."""

from collections.abc import Iterable
from math import ceil, floor, isinf, log10
from textwrap import shorten

MISSING = "–"  # noqa: RUF001 - an en dash
REASON_WIDTH = 400  # characters; results.csv has the whole text

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_RATE_UNITS = ("", "k", "M", "G", "T", "P")


def significant(value: float | None, digits: int = 3) -> str:
    """E.g. 1,234 · 123 · 12.3 · 0.0123: at least `digits` significant digits, never an exponent."""
    if value is None:
        return MISSING
    if value == 0 or isinf(value):
        return f"{value:g}"
    return f"{value:,.{_decimals(value, digits)}f}"


def integer(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def steps(value: float | None) -> str:
    """Break-even steps; infinite means never."""
    return "never" if value is not None and isinf(value) else integer(value)


def size(value: float | None) -> str:
    """Bytes in binary units, e.g. 512 MiB, 1.23 GiB."""
    if value is None:
        return MISSING
    return _scaled(value, 1024, _BYTE_UNITS)


def rate(value: float | None, unit: str) -> str:
    """E.g. 1.23 TFLOP/s."""
    return MISSING if value is None else _scaled(value, 1000, _RATE_UNITS) + unit


def interval(median: float | None, low: float | None, high: float | None) -> str:
    """E.g. 2,345 [2,331, 2,360]; both ends have the decimals of three significant digits of the median."""
    if median is None:
        return MISSING
    return f"{significant(median)} [{significant(low)}, {significant(high)}]"


def spread(median: float | None, low: float | None, high: float | None) -> str:
    """The same, shorter: 2,345 ±15, by the farther end, rounded up."""
    if median is None or low is None or high is None:
        return significant(median)
    return f"{significant(median)} ±{_farther(median, low, high, _decimals(median, 3))}"


def ratio(median: float | None, low: float | None = None, high: float | None = None) -> str:
    """E.g. 2.31x [2.28, 2.34]; without its interval 2.31x."""
    if median is None:
        return MISSING
    exact = low is None or high is None or low == median == high
    return f"{median:,.2f}x" if exact else f"{median:,.2f}x [{low:,.2f}, {high:,.2f}]"


def ratio_spread(median: float | None, low: float | None, high: float | None) -> str:
    """The same, shorter: 2.31x ±0.03, by the farther end, rounded up."""
    if median is None or low is None or high is None or low == median == high:
        return ratio(median)
    return f"{ratio(median)} ±{_farther(median, low, high, 2)}"


def percent(value: float | None) -> str:
    """Two significant digits above 1 %, e.g. 12 % or 2.3 %."""
    return MISSING if value is None else f"{significant(value, 2)} %"


def scientific(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2g}" if isinf(value) or value == 0 else f"{value:.1e}"


def code(value: str | None) -> str:
    return f"`{value}`" if value else MISSING


def plain(value: str) -> str:
    """One line: whitespace collapsed, the long end cut off."""
    return shorten(" ".join(value.split()), REASON_WIDTH, placeholder=" …")


def prose(value: str) -> str:
    """One line that is safe in a Markdown table: as `plain`, and markup escaped."""
    return plain(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def listing(words: Iterable[str]) -> str:
    """E.g. `a`, `a and b`, `a, b and c`."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _decimals(value: float, digits: int) -> int:
    return max(0, digits - 1 - floor(log10(abs(value)))) if value else 0


def _farther(median: float, low: float, high: float, decimals: int) -> str:
    """The distance to the farther end of an interval; never less than it is."""
    apart = ceil(round(max(high - median, median - low) * 10**decimals, 6)) / 10**decimals
    return f"{apart:,.{decimals}f}"


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    scaled = float(value)
    for unit in units[:-1]:
        if abs(scaled) < base:
            return f"{significant(scaled)} {unit}"
        scaled /= base
    return f"{significant(scaled)} {units[-1]}"
