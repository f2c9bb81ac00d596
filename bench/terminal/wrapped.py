"""Lines for people, broken between words at the width of a terminal; never inside a figure, an interval or a command.

Off a terminal a line stays one line: log files are searched.
"""

import re
from textwrap import wrap

from rich.console import Console
from rich.text import Text

_HARD = "\N{NO-BREAK SPACE}"
_UNITS = "img/s|px|B|KiB|MiB|GiB|TiB|ms|s|%|cases?|columns|samples|tensors|[kMGT]?(?:FLOP|B)/s"
# What is read, or copied, as one: a command to the end of its line, an interval with its figure, a figure's unit.
_COMMAND = r"(?:resbench run|python -m bench run|nox -s bench --) .*$"
_WHOLE = re.compile(rf"{_COMMAND}|(?:\S+ )?\[[^\]]*\](?: img/s)?|\d (?:{_UNITS})\b|\d %")


def say(console: Console, line: str | Text, *, indent: int = 2) -> None:
    """Print a line; on a terminal what does not fit goes below it, indented."""
    text = Text(line) if isinstance(line, str) else line
    if not console.is_terminal or not text.plain:
        console.print(text, soft_wrap=True)
        return
    first, *others = broken(text.plain, console.width, indent)
    head = Text(first, text.style, spans=[span for span in text.spans if span.end <= len(first)])
    for shown in (head, *(Text(other, text.style) for other in others)):
        console.print(shown, soft_wrap=True)


def broken(text: str, width: int, indent: int) -> list[str]:
    """The lines of a text; a word longer than the width has one for itself."""
    bound = _WHOLE.sub(lambda match: match[0].replace(" ", _HARD), text)
    lines = wrap(
        bound,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )
    return [line.replace(_HARD, " ") for line in lines]
