"""A progress bar whose description gives way where the width does not suffice."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

_WIDE = 120  # columns that leave room for a longer bar
_WHOLE_RUN_S = 7 * 86400.0  # cases differ too much for a short window to tell the time left


@dataclass(frozen=True, slots=True)
class _Shortened:
    """A text that loses its middle where it does not fit: it ends with the path of a case and its phase."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        del console
        yield Text(shortened(self.text, options.max_width), no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        del console, options
        return Measurement(1, len(self.text))


def shortened(text: str, width: int) -> str:
    """E.g. `resnet50-tr…autotune-cuda: sampling`."""
    if len(text) <= width:
        return text
    head = (width - 1) // 3
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}" if width > 1 else "…"[:width]


class _Description(ProgressColumn):
    def render(self, task: Task) -> _Shortened:
        return _Shortened(task.description)


def bar(console: Console) -> Progress:
    """A description, how much is done and the time left, gone at the end; on a terminal only.

    The description alone gives way where the width does not suffice.
    """
    return Progress(
        SpinnerColumn(table_column=Column(no_wrap=True)),
        _Description(),
        BarColumn(bar_width=24 if console.width >= _WIDE else 8, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TextColumn("left"),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        speed_estimate_period=_WHOLE_RUN_S,
        disable=not console.is_terminal,
    )
