"""Writes docs/api.md: the public names of `resnet` and `kernels`, from their docstrings, without importing them.

griffe reads signatures and sections; what there is to show is `__all__`, in its order.
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
    """What the package names in `__all__`, in that order."""
    loader = griffe.GriffeLoader(search_paths=[ROOT], docstring_parser="google", allow_inspection=False)
    module = loader.load(package)
    loader.resolve_aliases(external=False)
    found = [module[str(name).strip("'\"")] for name in module.exports or ()]
    return [name.final_target if name.is_alias else name for name in found]


def parameters(of: griffe.Class | griffe.Function) -> list[griffe.Parameter]:
    """What a call takes, without self; a class without `__init__` takes its annotated attributes."""
    if isinstance(of, griffe.Function) or "__init__" in of.members:
        return [parameter for parameter in of.parameters if parameter.name != "self"]
    kind = griffe.ParameterKind.positional_or_keyword
    fields = [member for member in of.members.values() if isinstance(member, griffe.Attribute)]
    return [griffe.Parameter(field.name, annotation=field.annotation, kind=kind) for field in fields]


def methods(of: griffe.Class | griffe.Function) -> list[griffe.Function]:
    """The methods of a class that are documented, in the order of the source."""
    members = of.members.values() if isinstance(of, griffe.Class) else ()
    return [
        member
        for member in members
        if isinstance(member, griffe.Function) and member.docstring and not member.name.startswith("_")
    ]


def signature(of: griffe.Class | griffe.Function) -> str:
    """As people call it, with annotations; on one line where it fits."""
    parts: list[str] = []
    for parameter in parameters(of):
        if parameter.kind is griffe.ParameterKind.keyword_only and "*" not in parts:
            parts.append("*")
        annotation = str(parameter.annotation).replace('"', "")
        default = "" if parameter.default is None else f" = {parameter.default}".replace("'", '"')
        parts.append(f"{parameter.name}: {annotation}{default}")
    returns = "" if isinstance(of, griffe.Class) else f" -> {of.returns}"
    line = f"{of.name}({', '.join(parts)}){returns}"
    return (
        line if len(line) <= WIDTH else "\n".join([f"{of.name}(", *(f"    {part}," for part in parts), f"){returns}"])
    )


def sections(of: griffe.Class | griffe.Function) -> list[griffe.DocstringSection]:
    """The parts of the docstring: text, arguments, what is returned and raised, examples."""
    return of.docstring.parsed if of.docstring else []


def entries(section: griffe.DocstringSection) -> list[tuple[str, str]]:
    """What a section lists: a name, or the class of an error, and what is said of it."""
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
