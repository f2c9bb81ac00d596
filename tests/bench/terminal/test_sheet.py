"""Tables that fit: what goes first where the width does not suffice, and that nothing is broken or cut."""

import pytest

from bench.terminal.sheet import Axis, Column, Form, Sheet
from tests.support.screens import shown, together

ROWS = [
    {"mode": mode, "device": "cpu", "name": name, "speed": speed, "note": "some words to read", "why": why}
    for mode, name, speed, why in (
        ("infer", "first", "1,234,567", "b"),
        ("infer", "second-of-all", "1", "b"),
        ("train", "first", "7", ""),
        ("train", "second-of-all", "8", ""),
    )
]
AXES = (Axis("device", "device", "on {}"), Axis("mode", "mode", "{} steps"))
NAME = Column("name", (Form(0, lambda row: row["name"]),), "left", key=True)
SPEED = Column("speed", (Form(0, lambda row: row["speed"]), Form(1, lambda row: f"{row['speed']} [{row['speed']}, 9]")))
WHY = Column("why not", (Form(2, lambda row: row["why"]),))
NEVER = Column("never", (Form(0, lambda _: ""),))


def sheet(*columns: Column, **changes: object) -> Sheet:
    plain = {"rows": ROWS, "columns": columns or (NAME, SPEED, WHY, NEVER), "axes": AXES, "title": "all"}
    return Sheet(**{**plain, **changes})  # type: ignore[arg-type]


def test_what_is_the_same_in_all_rows_is_in_the_title_and_what_is_empty_nowhere() -> None:
    title, heading, *_ = shown(sheet(), 100)
    assert title == "all · on cpu"
    assert heading.split() == ["mode", "name", "speed", "why", "not"]


def test_a_usual_value_is_not_worth_a_word() -> None:
    assert shown(sheet(axes=(Axis("device", "device", usual="cpu"),)), 100)[0] == "all"


@pytest.mark.parametrize(("width", "columns", "cell", "grouped"), [
    (65, ["mode", "name", "speed", "why", "not"], "1,234,567 [1,234,567, 9]", False),
    (48, ["mode", "name", "speed"], "1,234,567 [1,234,567, 9]", False),
    (42, ["name", "speed"], "1,234,567 [1,234,567, 9]", True),
    (31, ["mode", "name", "speed"], "1,234,567", False),
    (28, ["name", "speed"], "1,234,567", True),
])  # fmt: skip
def test_ranks_say_what_goes_first(width: int, columns: list[str], cell: str, grouped: bool) -> None:
    """The ends of the interval before the axis, the axis before what has a rank above the axes'."""
    late = Column("why not", (Form(20, lambda row: row["why"]),))
    found = shown(sheet(NAME, SPEED, late), width)
    assert found[1].split() == columns
    (row,) = together(found, "1,234,567") or together(found, "[1,234,567,")
    assert cell in row
    assert ("infer steps" in found) is grouped


def test_an_axis_is_a_column_only_where_those_inside_it_are() -> None:
    """Else rows of one group would stand apart."""
    long = [{**row, "inner": "a long name of a step"} for row in ROWS[:1]] + [{**row, "inner": "b"} for row in ROWS]
    found = shown(sheet(NAME, rows=long, axes=(Axis("mode", "mode"), Axis("inner", "inner"))), 30)
    assert found[1] == "name"
    assert "infer · a long name of a step" in found


def test_what_did_not_fit_is_named() -> None:
    found = shown(sheet(elsewhere="look there", note="read this"), 42)
    assert "read this; no room at 42 columns for why" in found
    assert "not (look there)" in found


def test_equal_ranks_come_together_or_not_at_all() -> None:
    twins = [Column(name, (Form(0, lambda _: "ab"), Form(1, lambda _: "a long one"))) for name in ("x", "y")]
    assert together(shown(sheet(NAME, *twins, axes=()), 37), "a", "long", "one")
    assert not together(shown(sheet(NAME, *twins, axes=()), 36), "a", "long", "one")


def test_columns_that_do_not_fit_beside_each_other_come_below_with_the_names_again() -> None:
    wide = [Column(f"c{number}", (Form(0, lambda row: row["speed"]),)) for number in range(4)]
    found = shown(sheet(NAME, *wide, axes=()), 40)
    headings = [line.split() for line in found if line.startswith("name")]
    assert headings == [["name", "c0", "c1"], ["name", "c2", "c3"]]
    assert len(together(found, "first", "1,234,567")) == 2


def test_headings_and_prose_are_broken_between_words_figures_never() -> None:
    told = Column("what it is", (Form(0, lambda row: 3 * f"{row['note']} "),), "left", prose=True)
    speed = Column("as measured here", SPEED.forms)
    found = shown(sheet(NAME, told, speed, axes=()), 45)
    assert [word for word in ("as", "measured", "here") if together(found[:5], word)] == ["as", "measured", "here"]
    assert together(found, "first", "1,234,567")
    assert {word for line in found[5:] for word in line.split()} <= {
        "first", "second-of-all", "some", "words", "to", "read", "1,234,567", "1", "7", "8",
    }  # fmt: skip


def test_groups_are_apart_single_rows_are_not() -> None:
    assert shown(sheet(), 100).count("") == 2  # between the modes, and below
    assert shown(sheet(axes=(Axis("mode", "mode"), Axis("name", "which"))), 100).count("") == 1


def test_nothing_prints_nothing() -> None:
    assert shown(sheet(rows=[]), 80) == []
