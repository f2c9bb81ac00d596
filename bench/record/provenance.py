"""An environment in words, and the differences of two, so that results of one never pass for the other's.

Imports no torch.
"""

import re
from collections.abc import Sequence

from bench.types import Environment

_SHOWN_FACTS = 3
_SHOWN_FILES = 3
_VALUE_WIDTH = 48  # characters
_COMMIT = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28}\b")


def differences(then: Environment, now: Environment) -> str:
    """E.g. `revision was 843a0cd29ab2 and is …; 1 source file differs: bench/a.py; torch was 2.14.0 and is 2.15.0`.

    Files are named where both environments know theirs.
    """
    names = [name for name in {**then.facts, **now.facts} if then.facts.get(name) != now.facts.get(name)]
    others = [name for name in names if name != "revision"]
    hidden = len(others) - _SHOWN_FACTS
    return "; ".join([
        *(_change(name, then, now) for name in names if name == "revision"),
        *_files(then, now),
        *(_change(name, then, now) for name in others[:_SHOWN_FACTS]),
        *([f"{hidden} more {'fact differs' if hidden == 1 else 'facts differ'}"] if hidden > 0 else []),
    ])  # fmt: skip


def told(environment: Environment) -> dict[str, str]:
    """The facts for a reader, with the source files that are not as committed."""
    changed = {"changed_sources": _few(environment.changed_sources)} if environment.changed_sources else {}
    return environment.facts | changed


def _few(names: Sequence[str]) -> str:
    """The first of them, and how many more: `a, b, c and 4 more`."""
    shown, hidden = list(names[:_SHOWN_FILES]), len(names) - _SHOWN_FILES
    if hidden > 0:
        return f"{', '.join(shown)} and {hidden} more"
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def _change(name: str, then: Environment, now: Environment) -> str:
    return f"{name.replace('_', ' ')} was {_value(then, name)} and is {_value(now, name)}"


def _value(environment: Environment, name: str) -> str:
    value = _COMMIT.sub(r"\1", environment.facts.get(name, "not there"))
    return value if len(value) <= _VALUE_WIDTH else f"{value[: _VALUE_WIDTH - 3]}..."


def _files(then: Environment, now: Environment) -> list[str]:
    """The source files that differ, as at most one sentence."""
    if not (then.sources and now.sources):  # of an older resbench
        return []
    differ = sorted(name for name in {**then.sources, **now.sources} if then.sources.get(name) != now.sources.get(name))
    if not differ:
        return []
    number = "1 source file differs" if len(differ) == 1 else f"{len(differ)} source files differ"
    return [f"{number}: {_few(differ)}"]
