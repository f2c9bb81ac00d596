"""The audit's shapes by default, and its compilations. Worker side: called through `bench.workers.parent`."""

from collections.abc import Sequence

from bench.audit.types import Row
from bench.kernels.ops import PLAIN, fits, layers
from bench.workers.child import announce
from kernels.audit.audit import FORMS, RUNNING_STATISTICS, audit
from kernels.kernel import Shape
from kernels.table import BLOCKS_BY_NAME

MODELS = ("resnet18", "resnet50")
BATCH_SIZE = 256

# Where no access can be wide, and where programs outnumber the rows: nothing may spill there either.
ODD_SHAPES: tuple[Shape, ...] = ((BATCH_SIZE, 3, 7, 7), (BATCH_SIZE, 63, 1, 1))
ODD_BLOCK_SHAPES: tuple[Shape, ...] = ((BATCH_SIZE, 74, 7, 7),)


def examine(archs: Sequence[str], dtypes: Sequence[str], forms: Sequence[str], shapes: Sequence[Shape]) -> list[Row]:
    """The rows of `kernels.audit.audit.audit`; without shapes at those of `default_shapes`. Announces "done/all".

    A block at a shape that has too few channels for it is left out.
    """
    defaults = default_shapes()
    asked = {form: [shape for shape in shapes if form == RUNNING_STATISTICS or fits(form, shape)] for form in forms}
    chosen = {form: asked[form] if shapes else defaults[form] for form in FORMS if form in forms}
    return audit(chosen, archs, dtypes, on_progress=lambda done, every: announce(f"{done}/{every}"))


def default_shapes() -> dict[str, list[Shape]]:
    """The shapes that each form meets in resnet18 and resnet50, and the odd ones.

    Plain BatchNorm, which no fused network has, is taken to meet those of all others.
    """
    met: dict[str, dict[Shape, None]] = {form: {} for form in FORMS}
    for model in MODELS:
        for form, shape in layers(model, BATCH_SIZE):
            for name in (form,) if form in BLOCKS_BY_NAME else (form, PLAIN, RUNNING_STATISTICS):
                met[name][shape] = None
    odd = {form: ODD_BLOCK_SHAPES if form in BLOCKS_BY_NAME else ODD_SHAPES for form in FORMS}
    return {form: [*shapes, *odd[form]] for form, shapes in met.items()}
