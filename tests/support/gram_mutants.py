"""Copies of the kernels of bottleneck blocks in which a text is replaced."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from kernels.launch import runtime
from kernels.products.tiles import ProductTile
from tests.support.mutants import copied

COPIED = (
    "products.operands", "products.plans", "products.conv_statistics", "products.block_end", "products.filter_gradient",
    "products.input_gradient", "gram.covariance", "gram.statistics", "gram.backward", "gram.inner_gradient",
    "bottleneck.parts", "bottleneck.backward", "bottleneck.forward", "bottleneck.inference", "bottleneck.forms",
)  # fmt: skip


@contextmanager
def changed(folder: Path, module: str = "", old: str = "", new: str = "") -> Iterator[ModuleType]:
    """The table of a copy of the kernels in which a text is replaced, with many tiles, as large tensors have them."""
    with copied(folder, COPIED, module, old, new) as name, pytest.MonkeyPatch.context() as patch:
        small = ProductTile(rows=16, columns=16, inner=16, num_warps=1, num_stages=1)
        patch.setattr(importlib.import_module(f"{name}.products.plans"), "product_tile", lambda _: small)
        machine = replace(runtime.ARCHITECTURES["interpreter"], multiprocessors=8)
        patch.setitem(runtime.ARCHITECTURES, "interpreter", machine)
        yield importlib.import_module(f"{name}.bottleneck.forms")
