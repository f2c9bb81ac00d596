"""The guards of `bench.numerics.guards`, each as something to take out of its kernel.

A guard is a place in a kernel, and what stood there without it.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A precaution of a kernel, and how the kernel reads without it."""

    name: str
    module: str
    kernel: str
    changes: tuple[tuple[str, str], ...]  # text of the module, and its replacement

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Inside, the kernel is without this guard."""
        module = importlib.import_module(self.module)
        text = Path(str(module.__file__)).read_text(encoding="utf-8")
        for old, new in self.changes:
            assert text.count(old) == 1, f"{old} stands {text.count(old)} times in {self.module}"
            text = text.replace(old, new)
        name, kernel = f"{self.module.replace('.', '_')}_without_guard", getattr(module, self.kernel)
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.py"
            file.write_text(text, encoding="utf-8")
            spec = spec_from_file_location(name, file)
            assert spec is not None and spec.loader is not None  # noqa: PT018
            sys.modules[name] = changed = module_from_spec(spec)
            try:
                spec.loader.exec_module(changed)
                setattr(module, self.kernel, getattr(changed, self.kernel))
                yield
            finally:
                setattr(module, self.kernel, kernel)
                del sys.modules[name]


REMOVABLE: Mapping[str, Guard] = {
    guard.name: guard
    for guard in (
        Guard(
            name="centre",
            module="kernels.gram.covariance",
            kernel="_prepare",
            changes=(("/ sample / place + 0.5) * place", "/ sample / place + 0.5) * 0.0"),),
        ),
        Guard(
            name="digits of the centre",
            module="kernels.gram.covariance",
            kernel="_prepare",
            changes=(("place = PLACE *", "place = PLACE / 4096 *"),),
        ),
        Guard(
            name="least variance",
            module="kernels.gram.statistics",
            kernel="_filter_statistics",
            changes=(("    var = tl.maximum(var, ROUNDING * terms * terms, propagate_nan=tl.PropagateNan.ALL)\n", ""),),
        ),
        Guard(
            name="unscale",
            module="kernels.gram.backward",
            kernel="_inner_filters",
            changes=(
                ("larger, larger_h = _scales(terms_ptr, N, LARGEST, BLOCK_FILTERS)", "larger, larger_h = 1.0, 1.0"),
            ),
        ),
        Guard(
            name="mean of the gradient",
            module="kernels.gram.backward",
            kernel="_inner_filters",
            changes=(("(mean / larger)[:, None] * scaled.to(acc)", "(mean * scale)[:, None] * right"),),
        ),
        Guard(
            name="diagonal of H",
            module="kernels.gram.backward",
            kernel="_inner_filters",
            changes=(
                ("diagonal += tl.sum(slope[:, None] * right * right, axis=0)", "diagonal += 0.0"),
                ("product = tl.where(channels[:, None] == columns[None, :], 0.0, product)", "product += 0.0"),
            ),
        ),
    )
}
