"""In what environments differ, as people read it."""

from dataclasses import replace

import pytest

from bench.record.provenance import differences, told
from bench.types import Environment

COMMIT = "843a0cd29ab224c88e1356312a3ef8962f953d45"
THEN = Environment(
    facts={"cpu": "one", "torch": "2.14.0", "revision": COMMIT},
    sources={"bench/a.py": "1", "bench/b.py": "2", "bench/c.py": "3", "kernels/d.py": "4", "kernels/e.py": "5"},
)


def now(**facts: str) -> Environment:
    return replace(THEN, facts=THEN.facts | facts)


def test_facts_that_differ_are_named_with_both_values() -> None:
    assert differences(THEN, now(torch="2.15.0")) == "torch was 2.14.0 and is 2.15.0"
    assert differences(now(cores="2"), THEN) == "cores was 2 and is not there"


def test_another_revision_names_the_files() -> None:
    edited = replace(
        now(revision=f"{COMMIT}-dirty-0123456789ab", torch="3"), sources={**THEN.sources, "bench/b.py": "x"}
    )
    assert differences(THEN, edited) == (
        "revision was 843a0cd29ab2 and is 843a0cd29ab2-dirty-0123456789ab; 1 source file differs: bench/b.py; "
        "torch was 2.14.0 and is 3"
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("bench/a.py", "bench/new.py"), "2 source files differ: bench/a.py and bench/new.py"),
        (("bench/a.py", "bench/b.py", "bench/c.py"), "3 source files differ: bench/a.py, bench/b.py and bench/c.py"),
        (tuple(THEN.sources), "5 source files differ: bench/a.py, bench/b.py, bench/c.py and 2 more"),
    ],
)
def test_of_many_files_the_first_are_named(changed: tuple[str, ...], said: str) -> None:
    edited = replace(now(revision="source-1"), sources=THEN.sources | dict.fromkeys(changed, "x"))
    assert differences(THEN, edited).endswith(f"; {said}")
    assert differences(edited, THEN).endswith(f"; {said}")


def test_of_many_facts_the_first_are_named_and_long_values_are_cut() -> None:
    there = Environment(facts={f"f{number}": "x" * 100 for number in range(5)})
    said = differences(there, Environment(facts={}))
    assert said.count("was " + "x" * 45 + "... and is not there") == 3
    assert said.endswith("; 2 more facts differ")


def test_an_environment_without_digests_says_the_facts_only() -> None:
    before = replace(THEN, sources={}, facts=THEN.facts | {"revision": f"{COMMIT}-dirty"})
    assert differences(before, THEN) == "revision was 843a0cd29ab2-dirty and is 843a0cd29ab2"


def test_a_reader_is_told_what_is_not_as_committed() -> None:
    assert told(THEN) == THEN.facts
    assert told(replace(THEN, changed_sources=("bench/a.py", "bench/b.py"))) == {
        **THEN.facts,
        "changed_sources": "bench/a.py and bench/b.py",
    }
