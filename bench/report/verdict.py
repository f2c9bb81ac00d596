"""The answer in words: which path is fastest, by how much, at what memory, and whether it is still right."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from bench.record.rows import BASELINE
from bench.render.records import Record, grouped
from bench.render.text import code, count, interval, listing, plain, prose, ratio, size
from bench.report.order import measured, setup, setup_name, varying
from bench.types import Status

COMPARABLE = ("images_per_s", "speedup_vs_eager_fp32")  # figures with intervals that rank all rows of a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Markup:
    """The markup of a sentence: the words are the same everywhere."""

    strong: Callable[[str], str]
    code: Callable[[str], str]
    prose: Callable[[str], str]  # the text of others


MARKDOWN = Markup(strong="**{}**".format, code=code, prose=prose)
PLAIN = Markup(strong=str, code=str, prose=plain)


def best(rows: list[Record]) -> Record:
    """The fastest of rows that have a speed, of one model, mode and batch size.

    By the speed-up over a baseline that all were compared with by turns; throughputs were taken minutes apart and
    decide only where there is none.
    """
    alike = len({row["precision"] for row in rows}) == 1
    names = ("speedup_vs_eager_fp32", *(("speedup_vs_eager",) if alike else ()), "images_per_s")
    name = next(name for name in names if all(row[name] is not None for row in rows))
    return max(rows, key=lambda row: row[name])


def at_largest_batch(rows: list[Record]) -> list[Record]:
    largest = max(row["batch_size"] for row in rows)
    return [row for row in rows if row["batch_size"] == largest]


def contenders(winner: Record, rows: list[Record]) -> list[Record]:
    """The rows that the run cannot tell from the winner: their throughputs, or their speed-ups over eager, overlap."""
    return [row for row in rows if row is not winner and any(_overlap(winner, row, name) for name in COMPARABLE)]


def _overlap(winner: Record, row: Record, name: str) -> bool:
    low, high = winner[f"{name}_low"], row[f"{name}_high"]
    return low is not None and high is not None and high >= low


def outcome(rows: list[Record], pending: int, markup: Markup = MARKDOWN) -> str:
    """The numbers of cases by status, and whether the paths compute what eager computes."""
    statuses = Counter(row["status"] for row in rows)
    named = [f"{statuses[status.value]:,} {status.value}" for status in Status if statuses[status.value]]
    text = f"{count(len(rows), 'case')}: {', '.join(named)}." if rows else "No case has a result yet."
    if pending:
        text += f" {count(pending, 'case')} still to run."
    return f"{text} {_parity(rows, markup)}".strip()


def _parity(rows: list[Record], markup: Markup) -> str:
    failed, passed = (sum(row["parity"] == word for row in rows) for word in ("fail", "pass"))
    if failed:
        failure = markup.strong(f"Parity failed for {count(failed, 'case')}")
        return f"{failure}: what they compute is not the reference's result, so they have no speed here."
    if passed:
        return (
            f"Parity passed in all {count(passed, 'checked case')}: no tensor is farther from the fp64 reference than "
            "its tolerance, which follows eager's own error."
        )
    return ""


def sentences(rows: list[Record], markup: Markup = MARKDOWN) -> list[str]:
    """One verdict for each model and mode, at the largest batch that has a speed."""
    timed = measured(rows)
    shown = varying(timed)
    return [_sentence(at_largest_batch(group), shown, markup) for _, group in grouped(timed, setup)]


def _sentence(rows: list[Record], shown: set[str], markup: Markup) -> str:
    winner = best(rows)
    speed = interval(winner["images_per_s"], winner["images_per_s_low"], winner["images_per_s_high"])
    place = markup.strong(f"{setup_name(winner, shown)}, batch {winner['batch_size']}")
    claims = [f"{place}: {markup.code(winner['path'])} in {winner['precision']} is fastest at {speed} img/s"]
    text = ", ".join([*claims, *_against_eager(winner), *_memory(winner)])
    return " ".join([f"{text}.", *_caveats(winner, rows, markup)])


def _against_eager(winner: Record) -> list[str]:
    def over(name: str) -> str:
        return ratio(winner[name], winner[f"{name}_low"], winner[f"{name}_high"])

    claims = []
    if winner["path"] != BASELINE and winner["speedup_vs_eager"] is not None:
        claims.append(f"{over('speedup_vs_eager')} as fast as eager in {winner['precision']}")
    if winner["precision"] != "fp32" and winner["speedup_vs_eager_fp32"] is not None:
        claims.append(f"{over('speedup_vs_eager_fp32')} as fast as eager in fp32")
    return claims


def _memory(winner: Record) -> list[str]:
    if winner["peak_allocated_bytes"] is None:
        return []
    peak = f"with a peak memory of {size(winner['peak_allocated_bytes'])}"
    if winner["path"] == BASELINE or winner["peak_vs_eager"] is None:
        return [peak]
    return [f"{peak}, {ratio(winner['peak_vs_eager'])} that of eager in {winner['precision']}"]


def _caveats(winner: Record, rows: list[Record], markup: Markup) -> list[str]:
    caveats = []
    if close := contenders(winner, rows):
        names = listing(f"{markup.code(row['path'])} in {row['precision']}" for row in close)
        caveats.append(f"This run cannot tell it from {names}: the intervals overlap.")
    if winner["path"] == BASELINE:
        others = any(row["path"] != BASELINE for row in rows)
        caveats.append("No path beats eager here." if others else "No other path has a speed here.")
    elif winner["speedup_vs_eager"] is None:
        why = markup.prose(winner["speedup_note"]) or "eager has no speed at that batch"
        caveats.append(f"It is not compared with eager: {why}.")
    caveats.append("Parity passed." if winner["parity"] == "pass" else "Its parity was not checked.")
    caveats += [f"{name} is marked {row['status']}." for name, row in _behind(winner, rows) if row["status"] != "valid"]
    return caveats


def _behind(winner: Record, rows: list[Record]) -> list[tuple[str, Record]]:
    """The rows that the figures of the winner's sentence come from."""
    eager = [row for row in rows if row["path"] == BASELINE and row["precision"] in (winner["precision"], "fp32")]
    named = [(f"The baseline, eager in {row['precision']},", row) for row in eager if row is not winner]
    return [("Its row", winner), *named]
