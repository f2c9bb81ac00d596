"""What keeps the numbers of a block right whose widest tensors do not exist, each of it as something to leave out.

A guard is a place in a kernel, and what stood there without it: the page of numerics shows what it is good for, and
tests see that without it a case fails.
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
    """One precaution: what it does, and how a kernel reads without it."""

    name: str
    does: str
    module: str
    kernel: str
    changes: tuple[tuple[str, str], ...]  # text of the module, and what to put there instead

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Inside, the kernel is one without this guard."""
        module = importlib.import_module(self.module)
        text = Path(str(module.__file__)).read_text(encoding="utf-8")
        for old, new in self.changes:
            assert text.count(old) == 1, f"{old} stands {text.count(old)} times in {self.module}"  # noqa: S101
            text = text.replace(old, new)
        name, kernel = f"{self.module.replace('.', '_')}_without_guard", getattr(module, self.kernel)
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.py"
            file.write_text(text, encoding="utf-8")
            spec = spec_from_file_location(name, file)
            assert spec is not None and spec.loader is not None  # noqa: S101, PT018
            sys.modules[name] = changed = module_from_spec(spec)
            try:
                spec.loader.exec_module(changed)
                setattr(module, self.kernel, getattr(changed, self.kernel))
                yield
            finally:
                setattr(module, self.kernel, kernel)
                del sys.modules[name]


GUARDS: Mapping[str, Guard] = {
    guard.name: guard
    for guard in (
        Guard(
            name="centre",
            does="products over all rows are of y less the mean of a sample of it",
            module="kernels.gram.covariance",
            kernel="_prepare",
            changes=(("/ sample / place + 0.5) * place", "/ sample / place + 0.5) * 0.0"),),
        ),
        Guard(
            name="digits of the centre",
            does="the centre has no finer digits than the largest y, so that subtracting it rounds to no side",
            module="kernels.gram.covariance",
            kernel="_prepare",
            changes=(("place = PLACE *", "place = PLACE / 4096 *"),),
        ),
        Guard(
            name="least variance",
            does="no variance is taken to be smaller than what its terms round to, nor below zero",
            module="kernels.gram.statistics",
            kernel="_filter_statistics",
            changes=(("    var = tl.maximum(var, ROUNDING * terms * terms, propagate_nan=tl.PropagateNan.ALL)\n", ""),),
        ),
        Guard(
            name="unscale",
            does="in fp16, a W and H are multiplied by powers of two that keep them in range until after the product",
            module="kernels.gram.backward",
            kernel="_inner_filters",
            changes=(
                ("larger, larger_h = _scales(terms_ptr, N, LARGEST, BLOCK_FILTERS)", "larger, larger_h = 1.0, 1.0"),
            ),
        ),
        Guard(
            name="mean of the gradient",
            does="h takes the mean of D back by the very a W, rounded, by which D is multiplied",
            module="kernels.gram.backward",
            kernel="_inner_filters",
            changes=(("(mean / larger)[:, None] * scaled.to(acc)", "(mean * scale)[:, None] * right"),),
        ),
        Guard(
            name="diagonal of H",
            does="the diagonal of H, which adds up in sums over rows, is not rounded to 16 bits",
            module="kernels.gram.backward",
            kernel="_inner_filters",
            changes=(
                ("diagonal += tl.sum(slope[:, None] * right * right, axis=0)", "diagonal += 0.0"),
                ("product = tl.where(channels[:, None] == columns[None, :], 0.0, product)", "product += 0.0"),
            ),
        ),
    )
}
