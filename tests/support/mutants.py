"""Copies of the kernels in which a text is replaced, with ops of their own: for tests that plant wrong formulas."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

import kernels

SOURCES = Path(kernels.__file__).parent
_numbers = count()


def source(module: str) -> Path:
    """The file of a module by its name within `kernels`."""
    return SOURCES.joinpath(*module.split(".")).with_suffix(".py")


@contextmanager
def copied(folder: Path, modules: Sequence[str], module: str, old: str, new: str) -> Iterator[str]:
    """Inside, the name of a package of copies of some modules, which import each other; `old` stands once in `module`.

    Modules are named within `kernels`, e.g. `products.block_end`.

    Without a module nothing is replaced.
    """
    name = f"mutant{next(_numbers)}"
    (folder / name).mkdir()
    for copy in modules:
        text = source(copy).read_text(encoding="utf-8")
        if copy == module:
            assert text.count(old) == 1, f"{old} stands {text.count(old)} times in {module}"
            text = text.replace(old, new)
        for other in modules:
            text = text.replace(f"from kernels.{other} import", f"from {name}.{other} import")
        text = text.replace("from kernels.batch_norm import", f"from {name}.batch_norm import")
        text = text.replace('"resbench::', f'"{name}::')
        file = folder / name / source(copy).relative_to(SOURCES)
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield name
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == name]:
        del sys.modules[loaded]
