"""report.md: sections in words, tables and pictures; a section that has nothing to say is left out."""

import re
from collections import Counter
from dataclasses import asdict
from statistics import median

import pandas as pd
from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined, select_autoescape

from bench.machine import kept_ceilings
from bench.record.metrics import METRICS_BY_NAME
from bench.record.provenance import told
from bench.report import plots, columns as tables, verdict
from bench.record.glossary import STATUSES
from bench.report.order import Record, grouped, measured, records, setup
from bench.render.text import count, listing, prose, significant
from bench.record.rows import TIMED_STATUSES, wall_and_measured_s
from bench.types import FINE, Environment, Run, Status

# The facts that a reader asks for first, where the run knows them; the rest is folded away.
FIRST_FACTS = (
    "device", "gpu_memory", "multiprocessors", "driver", "power_limit", "cpu", "cores", "torch_threads", "memory",
    "torch", "cuda", "cudnn", "triton", "python", "os", "revision", "changed_sources",
)  # fmt: skip

templates = Templates(
    loader=PackageLoader("bench.report"),
    autoescape=select_autoescape(),  # HTML only: this is Markdown
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(run: Run, frame: pd.DataFrame) -> str:
    """The report of a run, whose frame is `bench.record.metrics.frame(run)`. Pictures are linked by relative path."""
    rows = records(frame)
    timed = measured(rows)
    checked = [row for row in rows if row["parity"]]
    text = templates.get_template("report.md.j2").render(
        run=run,
        title=_title(run),
        notices=[prose(notice) for notice in run.notices],
        outcome=verdict.outcome(rows, len(run.pending)),
        verdicts=verdict.sentences(rows),
        headline=tables.table(_headline(timed), tables.HEADLINE),
        throughput=tables.parts(timed, tables.THROUGHPUT),
        settings=asdict(run.plan.settings),
        memory_meaning=METRICS_BY_NAME["peak_allocated_bytes"].description,
        memory=tables.parts([row for row in timed if row["peak_allocated_bytes"] is not None], tables.MEMORY),
        largest=tables.table([row for row in rows if row["max_batch_size"] is not None], tables.MAX_BATCH),
        speedup_notes=_notes(timed, "speedup_note"),
        latency=tables.parts([row for row in timed if row["mode"] == "infer"], tables.LATENCY),
        compile=tables.parts(tables.compiled(timed), tables.COMPILE),
        power=tables.parts([row for row in timed if row["power_w"] is not None], tables.POWER),
        parity=tables.parts(checked, tables.PARITIES),
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
        pictures={picture.name: picture for picture in plots.drawable(frame)},
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
    """What is to be said below a table, once each."""
    return sorted({prose(row[name]) for row in rows if row[name]})


def _by_status(rows: list[Record], statuses: frozenset[Status]) -> list[dict[str, str]]:
    """The rows of these statuses, with their reasons."""
    groups = {status: [row for row in rows if row["status"] == status] for status in STATUSES if status in statuses}
    return [
        {"status": status.value, "meaning": STATUSES[status], "table": tables.table(group, tables.FAILURES)}
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
    """What paths decided by measuring: of each case, the places by decision."""
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


def fact_table(environment: Environment | None, *, first: bool) -> str:
    """The facts that a reader asks for first, or the others, as a table."""
    facts = told(environment) if environment else {}
    if facts.get("cpu") == facts.get("device"):
        facts.pop("cpu", None)
    names = [name for name in FIRST_FACTS if name in facts]
    chosen = names if first else [name for name in facts if name not in names]
    rows = [{"name": name.replace("_", " "), "value": facts[name]} for name in chosen]
    columns = (
        tables.Column("fact", lambda row: prose(row["name"]), "left"),
        tables.Column("value", lambda row: prose(row["value"]), "left"),
    )
    return tables.table(rows, columns)


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
    columns = (
        tables.Column("phase", lambda row: str(row["phase"]), "left"),
        tables.Column("s in all cases", lambda row: significant(row["seconds"])),
    )
    return tables.table(rows, columns)
