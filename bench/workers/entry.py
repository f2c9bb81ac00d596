"""The names by which the parent calls functions that run in workers. Imports no torch.

    if TYPE_CHECKING:
        from bench.run import worker
    else:
        worker = remote("bench.run.worker")

    environment = call(worker.survey, device, weights)

The type checker sees the module itself, and so checks the arguments and what is done with the answer against the
function. When the program runs, `worker.survey` is a name, and the module, which may import torch, is loaded in workers
alone. A test finds every name and looks whether there is such a function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class Entry:
    """A function of a module, by name."""

    module: str
    function: str

    def __call__(self, *arguments: object, **named: object) -> Any:  # noqa: ANN401 - whatever it returns
        """Load the module here, in a worker, and run the function."""
        return getattr(import_module(self.module), self.function)(*arguments, **named)

    def __str__(self) -> str:
        return f"{self.module}:{self.function}"


@dataclass(frozen=True, slots=True)
class Remote:
    """Stands for a module: its attributes are the names of functions."""

    module: str

    def __getattr__(self, name: str) -> Entry:
        if name.startswith("_"):  # what pickle and copy ask for
            raise AttributeError(name)
        return Entry(self.module, name)


def checked(task: Callable[[], object]) -> object:
    """The value of the task, which is of the type that its function's annotation says.

    Raises:
        TypeError: it is of another type.
    """
    value = task()
    function = task.func if isinstance(task, partial) else task
    if isinstance(function, Entry):
        function = getattr(import_module(function.module), function.function)
    hint = get_type_hints(function).get("return", object)
    types = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
    kinds = tuple(type(None) if kind is None else object if kind is Any else kind for kind in types)
    if not isinstance(value, kinds):
        raise TypeError(f"{function.__module__}:{function.__qualname__} returned {type(value).__name__}, not {hint}")
    return value


def remote(module: str) -> Any:  # noqa: ANN401 - stands for the module
    """Stands for a module whose functions run in workers."""
    return Remote(module)
