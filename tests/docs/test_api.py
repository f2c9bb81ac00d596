"""The page of public names: as the docstrings are today, complete, with examples that run."""

import doctest

import griffe
import pytest

from docs import api

PUBLIC = {f"{package}.{found.name}": found for package in api.PACKAGES for found in api.public(package)}
METHODS = {f"{name}.{method.name}": method for name, found in PUBLIC.items() for method in api.methods(found)}


def listed(found: griffe.Class | griffe.Function) -> dict[str, list[str]]:
    """What each section of the docstring lists, by the kind of the section."""
    lists = (section for section in api.sections(found) if section.kind.value in api.TITLES)
    return {section.kind.value: [name for name, _ in api.entries(section)] for section in lists}


def examples(found: griffe.Class | griffe.Function) -> str:
    parts = (section.value for section in api.sections(found) if section.kind.value == "examples")
    return "\n".join(text for part in parts for _, text in part)


def test_the_page_is_what_its_command_writes_today() -> None:
    assert api.PAGE.read_text(encoding="utf-8") == api.render(), "run python -m docs.api"


def test_the_page_has_every_name_of_all() -> None:
    assert list(PUBLIC) == [f"{package}.{name}" for package in api.PACKAGES for name in __import__(package).__all__]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_takes_returns_and_raises(name: str) -> None:
    found = PUBLIC[name]
    sections = listed(found)
    takes = [parameter.name for parameter in api.parameters(found)]
    assert sections.get("parameters", sections.get("attributes")) == takes
    if isinstance(found, griffe.Function):
        assert ("returns" in sections) == (str(found.returns) != "None")
        assert "raises" in sections
    assert examples(found)


@pytest.mark.parametrize("name", METHODS)
def test_every_public_method_says_what_it_takes_and_raises(name: str) -> None:
    takes = [parameter.name for parameter in api.parameters(METHODS[name])]
    sections = listed(METHODS[name])
    assert sections.get("parameters", []) == takes
    assert ("raises" in sections) == bool(takes)


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_show_what_they_say(name: str) -> None:
    said: list[str] = []
    example = doctest.DocTestParser().get_doctest(examples(PUBLIC[name]), {}, name, None, None)
    doctest.DocTestRunner().run(example, out=said.append)
    assert said == []
