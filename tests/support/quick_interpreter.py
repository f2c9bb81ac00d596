"""Triton's interpreter without what it does over and over to no effect: the same numbers in a quarter of the time.

At every call of a device function it exchanges the functions of the language for its own anew, and looks for them by
`inspect`. It adds integers twice, to find overflows that it tells only where it debugs. For each question it makes its
table of dtypes, and for each tensor it takes the tensor's shape apart.
"""

import inspect
from functools import cache
from types import SimpleNamespace
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_LANGUAGE = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})  # in place of a function that sees both

_patch_language_of = interpreter._patch_lang
_np_dtype_of = interpreter._get_np_dtype
_init_block_type_first = tl.block_type.__init__
_init_tensor_first = tl.tensor.__init__
_np_dtypes: dict[str, Any] = {}
_of_types: dict[tuple[int, ...], tuple[Any, int, str]] = {}  # by sizes: shape, number of elements, begin of the name
_of_tensors: dict[tuple[int, ...], tuple[Any, Any]] = {}  # by sizes: shape and number of elements


class _Scope(interpreter._LangPatchScope):  # type: ignore[misc]
    """What a launch has exchanged, until it ends."""

    active = False

    def restore(self) -> None:
        super().restore()
        _Scope.active = False


def _patch_lang(fn: object) -> Any:  # noqa: ANN401, ARG001 - as the function it replaces
    """Once a launch: within it, device functions find the language as it is to be."""
    if _Scope.active:
        return _Scope()
    _Scope.active = True
    return _patch_language_of(_LANGUAGE)


def _patch_builtin(owner: Any, builder: object, scope: _Scope) -> None:  # noqa: ANN401 - as the function it replaces
    for name, member in _builtins_of(owner):
        interpreter._patch_attr(owner, name, member, builder, scope)


@cache
def _builtins_of(owner: object) -> list[tuple[str, Any]]:
    return [(name, member) for name, member in inspect.getmembers(owner) if tl.core.is_builtin(member)]


def _get_np_dtype(of: Any) -> Any:  # noqa: ANN401 - as the function it replaces
    name = of.scalar.name
    if name not in _np_dtypes:
        _np_dtypes[name] = _np_dtype_of(of)
    return _np_dtypes[name]


def _init_block_type(self: Any, element_ty: Any, shape: Any) -> None:  # noqa: ANN401 - as the method it replaces
    sizes = tuple(size.value if isinstance(size, tl.constexpr) else size for size in shape)
    if sizes in _of_types:
        self.element_ty = element_ty
        self.shape, self.numel, begin = _of_types[sizes]
        self.name = f"{begin}{element_ty}>"
    else:
        _init_block_type_first(self, element_ty, shape)
        _of_types[sizes] = self.shape, self.numel, f"<{self.shape}, "


def _init_tensor(self: Any, handle: Any, type: Any) -> None:  # noqa: A002, ANN401 - as the method it replaces
    sizes = tuple(type.shape) if type.is_block() else ()
    if sizes in _of_tensors:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = _of_tensors[sizes]
    else:
        _init_tensor_first(self, handle, type)
        _of_tensors[sizes] = self.shape, self.numel


CHANGES: tuple[tuple[Any, str, object], ...] = (  # owner, name, and what is there instead
    (interpreter, "_LangPatchScope", _Scope),
    (interpreter, "_patch_lang", _patch_lang),
    (interpreter, "_patch_builtin", _patch_builtin),
    (interpreter, "_get_np_dtype", _get_np_dtype),
    (interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(sanitize_overflow=False)),
    (tl.block_type, "__init__", _init_block_type),
    (tl.tensor, "__init__", _init_tensor),
)
ORIGINALS = tuple((owner, name, getattr(owner, name)) for owner, name, _ in CHANGES)


def hurry() -> None:
    """Change it; where kernels run on a GPU nothing of this is called but the last two."""
    for owner, name, new in CHANGES:
        setattr(owner, name, new)
