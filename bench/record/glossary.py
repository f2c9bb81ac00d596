"""The meaning of a report's words: the statuses, and the columns of results.csv as reports/README.md explains them."""

from bench.record.metrics import METRICS
from bench.types import Status

STATUSES: dict[Status, str] = {
    Status.VALID: "Measured as planned; parity did not fail.",
    Status.UNSTABLE: "Measured, but the confidence target was not met within the budget; read the interval.",
    Status.THROTTLED: "Measured, but the GPU lowered its clocks meanwhile; the reason names why.",
    Status.RECOMPILED: "Measured, but torch.compile recompiled during the samples.",
    Status.SHARED_GPU: "Measured, but another process was using the same GPU.",
    Status.PARITY_FAILED: "The path does not compute what the reference computes; it has no speed.",
    Status.OOM: "Out of memory at this batch size, which is never changed silently.",
    Status.TIMEOUT: "A stage of the case was not finished within its time.",
    Status.CRASHED: "The worker died or raised; the reason names the signal or the error.",
    Status.NOT_TIMED: "Parity passed, and a time would say nothing about the path on this device; the reason says why.",
    Status.UNSUPPORTED: "Cannot run on this machine, or only in emulation; the reason says what is missing.",
}


def columns_markdown() -> str:
    """The METRICS table as Markdown."""
    head = ["| column | unit | better | meaning |", "|:--|:--|:--|:--|"]
    lines = [f"| `{m.name}` | {m.unit} | {m.better or ''} | {m.description} |" for m in METRICS]
    return "\n".join([*head, *lines])


def statuses_markdown() -> str:
    """The statuses as Markdown: first those whose figures stand, then those that have none."""
    head = ["| status | meaning |", "|:--|:--|"]
    return "\n".join([*head, *(f"| `{status}` | {meaning} |" for status, meaning in STATUSES.items())])
