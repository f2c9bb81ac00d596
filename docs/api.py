"""Writes docs/api.md: the public names of `resnet` and `kernels`, from their docstrings, without importing them.

griffe reads signatures and sections; `__all__` says which names are shown, and in which order.
"""

from pathlib import Path

import griffe
from jinja2 import Environment, FileSystemLoader, StrictUndefined

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
PACKAGES = ("resnet", "kernels")
WIDTH = 88  # of a signature: one that is longer has a line for each parameter
TITLES = {"parameters": "Arguments", "attributes": "Fields", "returns": "Returns", "raises": "Raises", "warns": "Warns"}


def public(package: str) -> list[griffe.Class | griffe.Function]:
    """The objects that the package names in `__all__`, in that order."""
    loader = griffe.GriffeLoader(search_paths=[ROOT], docstring_parser="google", allow_inspection=False)
    module = loader.load(package)
    loader.resolve_aliases(external=False)
    items = [module[str(name).strip("'\"")] for name in module.exports or ()]
    return [item.final_target if item.is_alias else item for item in items]


def parameters(item: griffe.Class | griffe.Function) -> list[griffe.Parameter]:
    """The parameters of a call, without self; those of a class without `__init__` are its annotated attributes."""
    if isinstance(item, griffe.Function) or "__init__" in item.members:
        return [parameter for parameter in item.parameters if parameter.name != "self"]
    kind = griffe.ParameterKind.positional_or_keyword
    fields = [member for member in item.members.values() if isinstance(member, griffe.Attribute)]
    return [griffe.Parameter(field.name, annotation=field.annotation, kind=kind) for field in fields]


def methods(item: griffe.Class | griffe.Function) -> list[griffe.Function]:
    """The methods of a class that are documented, in the order of the source."""
    members = item.members.values() if isinstance(item, griffe.Class) else ()
    return [
        member
        for member in members
        if isinstance(member, griffe.Function) and member.docstring and not member.name.startswith("_")
    ]


def signature(item: griffe.Class | griffe.Function) -> str:
    """The call with annotations; on one line where it fits."""
    parts: list[str] = []
    for parameter in parameters(item):
        if parameter.kind is griffe.ParameterKind.keyword_only and "*" not in parts:
            parts.append("*")
        annotation = str(parameter.annotation).replace('"', "")
        default = "" if parameter.default is None else f" = {parameter.default}".replace("'", '"')
        parts.append(f"{parameter.name}: {annotation}{default}")
    returns = "" if isinstance(item, griffe.Class) else f" -> {item.returns}"
    line = f"{item.name}({', '.join(parts)}){returns}"
    return (
        line if len(line) <= WIDTH else "\n".join([f"{item.name}(", *(f"    {part}," for part in parts), f"){returns}"])
    )


def sections(item: griffe.Class | griffe.Function) -> list[griffe.DocstringSection]:
    """The parts of the docstring: text, arguments, what is returned and raised, examples."""
    return item.docstring.parsed if item.docstring else []


def entries(section: griffe.DocstringSection) -> list[tuple[str, str]]:
    """The entries of a section: a name, or the class of an error, each with its description."""
    named = section.kind.value not in ("raises", "warns")
    return [(item.name if named else str(item.annotation), item.description) for item in section.value]


def render() -> str:
    """The page."""
    environment = Environment(  # noqa: S701 - Markdown
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"signature": signature, "sections": sections, "entries": entries, "methods": methods}
    packages = {package: public(package) for package in PACKAGES}
    return environment.get_template("api.md.j2").render(packages=packages, titles=TITLES)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
