"""The last lines of a run in the terminal: why cases have no figures, how many there are, and the verdicts."""

from collections.abc import Iterator

from bench.record.rows import TIMED_STATUSES
from bench.render.records import Record, grouped
from bench.render.text import count, listing, plain
from bench.report.verdict import PLAIN, outcome, sentences
from bench.terminal.tables import STYLES
from bench.types import Status

NAMED = 3  # cases; of more only the paths and their number


def lines(rows: list[Record], pending: int) -> list[str]:
    """The lines, from the same rows as report.md; an empty line ends a paragraph."""
    why = list(reasons(rows))
    return [*why, *([""] if why else []), outcome(rows, pending, PLAIN), *sentences(rows, PLAIN), ""]


def reasons(rows: list[Record]) -> Iterator[str]:
    """One line a reason why cases have no figures: failures first, what cannot run here last."""
    for status in STYLES:  # in the order of their weight
        if status in TIMED_STATUSES:
            continue
        matching = [row for row in rows if row["status"] == status]
        for reason, group in grouped(matching, lambda row: row["reason"]):
            yield f"{_named(status, group)}: {plain(reason)}"


def _named(status: Status, rows: list[Record]) -> str:
    if len(rows) <= NAMED and status not in (Status.UNSUPPORTED, Status.NOT_TIMED):
        return f"{status.value}, {listing(row['case'] for row in rows)}"
    return f"{status.value}, {count(len(rows), 'case')} of {listing(dict.fromkeys(row['path'] for row in rows))}"
