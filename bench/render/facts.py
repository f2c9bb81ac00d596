"""The facts of an environment as a table."""

from bench.record.provenance import told
from bench.render.tables import Column, table
from bench.render.text import prose
from bench.types import Environment

# The facts that a reader asks for first, where the run knows them; the rest is folded away.
FIRST_FACTS = (
    "device", "gpu_memory", "multiprocessors", "driver", "power_limit", "cpu", "cores", "torch_threads", "memory",
    "torch", "cuda", "cudnn", "triton", "python", "os", "revision", "changed_sources",
)  # fmt: skip


def fact_table(environment: Environment | None, *, first: bool) -> str:
    """The facts that a reader asks for first, or the others, as a table."""
    facts = told(environment) if environment else {}
    if facts.get("cpu") == facts.get("device"):
        facts.pop("cpu", None)
    names = [name for name in FIRST_FACTS if name in facts]
    chosen = names if first else [name for name in facts if name not in names]
    rows = [{"name": name.replace("_", " "), "value": facts[name]} for name in chosen]
    columns = (
        Column("fact", lambda row: prose(row["name"]), "left"),
        Column("value", lambda row: prose(row["value"]), "left"),
    )
    return table(rows, columns)
