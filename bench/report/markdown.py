"""report.md: sections in words, tables and pictures; a section that has nothing to say is left out."""

import re
from collections import Counter
from dataclasses import asdict
from statistics import median

from bench.machine import kept_ceilings
from bench.record.glossary import STATUSES
from bench.record.metrics import METRICS_BY_NAME
from bench.record.rows import TIMED_STATUSES, wall_and_measured_s
from bench.render.facts import fact_table
from bench.render.records import Record, grouped
from bench.render.tables import Column, table
from bench.render.templates import templates
from bench.render.text import count, listing, prose, significant
from bench.report import columns, plots, verdict
from bench.report.order import measured, setup
from bench.types import FINE, Run, Status


def render(run: Run, rows: list[Record]) -> str:
    """The report of a run, whose table has these rows, in reading order. Pictures are linked by relative path."""
    timed = measured(rows)
    checked = [row for row in rows if row["parity"]]
    text = templates.get_template("report/report.md.j2").render(
        run=run,
        title=_title(run),
        notices=[prose(notice) for notice in run.notices],
        outcome=verdict.outcome(rows, len(run.pending)),
        verdicts=verdict.sentences(rows),
        headline=table(_headline(timed), columns.HEADLINE),
        throughput=columns.parts(timed, columns.THROUGHPUT),
        settings=asdict(run.plan.settings),
        memory_meaning=METRICS_BY_NAME["peak_allocated_bytes"].description,
        memory=columns.parts([row for row in timed if row["peak_allocated_bytes"] is not None], columns.MEMORY),
        largest=table([row for row in rows if row["max_batch_size"] is not None], columns.MAX_BATCH),
        speedup_notes=_notes(timed, "speedup_note"),
        latency=columns.parts([row for row in timed if row["mode"] == "infer"], columns.LATENCY),
        compile=columns.parts(columns.compiled(timed), columns.COMPILE),
        power=columns.parts([row for row in timed if row["power_w"] is not None], columns.POWER),
        parity=columns.parts(checked, columns.PARITIES),
        parity_notes=_notes(checked, "parity_note"),
        failures=_by_status(rows, frozenset(Status) - TIMED_STATUSES - FINE),
        marked=_by_status(rows, TIMED_STATUSES - {Status.VALID}),
        not_timed=_by_reason(rows, Status.NOT_TIMED),
        unsupported=_by_reason(rows, Status.UNSUPPORTED),
        pending=[case.key for case in run.pending],
        choices=_choices(run),
        facts=fact_table(run.environment, first=True),
        other_facts=fact_table(run.environment, first=False),
        ceilings=kept_ceilings.told(run.ceilings) if run.ceilings else "",
        overhead=_overhead(run),
        phases=_phases(run),
        pictures={picture.name: picture for picture in plots.drawable(rows)},
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"  # sections left out leave their blank lines


def _title(run: Run) -> str:
    device = run.environment.facts.get("device", "") if run.environment else ""
    return f"ResNet benchmark: {run.plan.name}" + (f" on {device}" if device else "")


def _headline(timed: list[Record]) -> list[Record]:
    """The best path of each model, mode and precision at the largest batch that has a speed."""
    cells = grouped(timed, lambda row: (*setup(row), row["precision"]))
    return [verdict.best(verdict.at_largest_batch(cell)) for _, cell in cells]


def _notes(rows: list[Record], name: str) -> list[str]:
    """The notes below a table, once each."""
    return sorted({prose(row[name]) for row in rows if row[name]})


def _by_status(rows: list[Record], statuses: frozenset[Status]) -> list[dict[str, str]]:
    """The rows of these statuses, with their reasons."""
    groups = {status: [row for row in rows if row["status"] == status] for status in STATUSES if status in statuses}
    return [
        {"status": status.value, "meaning": STATUSES[status], "table": table(group, columns.FAILURES)}
        for status, group in groups.items()
        if group
    ]


def _by_reason(rows: list[Record], status: Status) -> list[dict[str, object]]:
    """The rows of one status by reason."""
    skipped = [row for row in rows if row["status"] == status]
    return [
        {
            "reason": prose(reason),
            "number": count(len(group), "case"),
            "paths": listing(dict.fromkeys(f"`{row['path']}`" for row in group)),
            "cases": [row["case"] for row in group],
        }
        for reason, group in grouped(skipped, lambda row: row["reason"])
    ]


def _choices(run: Run) -> list[dict[str, str]]:
    """The decisions that paths made by measuring: for each case, the places by decision."""
    return [
        {
            "case": result.case.key,
            "decisions": "; ".join(
                f"{prose(decision)}: {', '.join(f'`{place}`' for place, choice in places)}"
                for decision, places in _by_decision(result.choices)
            ),
        }
        for result in run.results
        if result.choices
    ]


def _by_decision(choices: dict[str, str]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        (decision, [(place, choice) for place, choice in choices.items() if choice == decision])
        for decision in dict.fromkeys(choices.values())
    ]


def _overhead(run: Run) -> str:
    """Wall time of the sweep over the time inside warm-up, samples and turns."""
    wall_s, inside_s = wall_and_measured_s(run)
    if not (wall_s and inside_s):
        return ""
    text = (
        f"The sweep took {significant(wall_s)} s of wall time in {count(len(run.sessions), 'sitting')}, of which "
        f"{significant(inside_s)} s were warm-up, samples and turns with eager: a ratio of {wall_s / inside_s:.2f}."
    )
    starts = [result.phases_s["start-up"] for result in run.results if "start-up" in result.phases_s]
    return f"{text} Start-up took {significant(median(starts))} s per case (median)." if starts else text


def _phases(run: Run) -> str:
    totals: Counter[str] = Counter()
    for result in run.results:
        totals.update(result.phases_s)
    rows = [{"phase": phase, "seconds": seconds} for phase, seconds in totals.items()]
    shown = (
        Column("phase", lambda row: str(row["phase"]), "left"),
        Column("s in all cases", lambda row: significant(row["seconds"])),
    )
    return table(rows, shown)
