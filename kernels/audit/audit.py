"""Compiles every kernel for every GPU it is written for, without that GPU, and reports the faults of the results.

It compiles the launches that `kernels.launch.runtime.recorded` lists, forward and backward (a block in evaluation mode
has no backward pass); launches that the compiler cannot tell apart are compiled once. Each is required to have:

- No spills: no stack frame, which is where ptxas spills registers to.
- 128-bit accesses to every activation where the layout allows them: channels_last with a multiple of 16 bytes per
  pixel, and NCHW with a multiple of 16 pixels per image, except in the passes of a pooling, which gather in NCHW; in
  products where all numbers of channels are multiples of 16, which the compiler has to know. Activations are the
  floating-point arguments [N, C, ...] that are neither filters nor partial sums, without the gradient of a pooling's
  output, of which each pixel picks its own elements. `kernels.audit.ptx` attributes accesses to arguments; the
  narrowest access to each argument counts, and none at all is a fault too.
- No more shared memory than the architecture gives to one program.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError

from kernels.audit.compilation import DTYPES, Compilation, Figures, compiled, occupancy, of_call
from kernels.batch_norm.statistics import update_running_statistics
from kernels.bottleneck.forms import BlockForm
from kernels.kernel import Kernel, Shape
from kernels.launch.runtime import ARCHITECTURES, Call, recorded
from kernels.products.cublas import CUBLAS
from kernels.products.plans import SPECIALISED
from kernels.table import FORMS as FUSED_FORMS

RUNNING_STATISTICS = "running statistics"
FORMS = (*FUSED_FORMS, RUNNING_STATISTICS)
WIDE = 128  # bits
PRODUCTS = ("highest", "high")  # torch's settings for fp32 products: in fp32, or in TF32
SIDES = ("BLOCK_ROWS", "BLOCK_CHANNELS", "BLOCK_COLUMNS", "BLOCK_INNER")  # the sides of tiles, as kernels name them


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A compilation, and the requirements that its result has to meet."""

    compilation: Compilation
    dtype: str  # of x
    layout: str  # of activations; empty: it reads none
    activations: tuple[str, ...]  # pointer arguments
    wide: tuple[str, ...]  # the activations that need 128-bit accesses

    @property
    def main(self) -> tuple[str, ...]:
        """The arguments whose accesses are reported as the kernel's."""
        return self.wide or self.activations

    @property
    def kernel(self) -> str:
        return self.compilation.kernel.partition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A form, mode and shape that launches a subject."""

    form: str
    mode: str
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A form at some shapes, for one architecture and dtype."""

    form: str
    shapes: Sequence[Shape]
    arch: str
    dtype: str


Uses = dict[Subject, list[Use]]


def audit(
    shapes: Mapping[str, Sequence[Shape]],
    archs: Sequence[str],
    dtypes: Sequence[str],
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[dict[str, object]]:
    """Compile every launch of some forms, in all layouts and modes, on all cores.

    Args:
        shapes: of x [N, C, H, W], for each form (of FORMS).
        archs: of ARCHITECTURES.
        dtypes: of DTYPES.
        on_progress: called with the number of compilations that are done, and their total.

    Returns:
        A row of plain values for each compilation: its subject and uses, the figures, and `faults`, one line each.
    """
    work = [
        Work(form=form, shapes=form_shapes, arch=arch, dtype=dtype)
        for arch, dtype, (form, form_shapes) in product(archs, dtypes, shapes.items())
    ]
    with compilers() as pool:
        uses: Uses = {}
        for partial_uses in pool.map(subjects, work):
            for item, item_uses in partial_uses.items():
                uses.setdefault(item, []).extend(item_uses)
        rows = []
        for item, verdict in zip(uses, pool.map(judged, uses), strict=True):
            rows.append(_row(item, uses[item], *verdict))
            on_progress(len(rows), len(uses))
    return rows


@contextmanager
def compilers() -> Iterator[ProcessPoolExecutor]:
    """Start a process for each core that compiles kernels, with a cache of their own.

    Sets environment variables of this process, which they inherit.
    """
    with TemporaryDirectory() as cache:
        os.environ.update(TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache)
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
            yield pool


def subjects(work: Work) -> Uses:
    """Return the distinct subjects of some work, and what launches each."""
    uses: Uses = {}
    for shape, channels_last, training in product(work.shapes, _layouts(work.form), (True, False)):
        with recorded(work.arch) as calls:
            _launch(work, shape, channels_last=channels_last, training=training)
        use = Use(form=work.form, mode="training" if training else "evaluation", shape=shape)
        for call in (call for call in calls if call.kernel is not CUBLAS):
            uses.setdefault(subject(call, work, shape), []).append(use)
    return uses


def _layouts(form: str) -> tuple[bool, ...]:
    """The values of `channels_last` to compile a form for; a block copies x to channels_last itself."""
    return (True,) if isinstance(FUSED_FORMS.get(form), BlockForm) else (True, False)


def _launch(work: Work, shape: Shape, *, channels_last: bool, training: bool) -> None:
    """Run a form forward and backward on meta tensors; a block in fp32 also with its products in TF32."""
    if work.form == RUNNING_STATISTICS:
        if training:
            _launch_running_statistics(shape)
        return
    form, dtype = FUSED_FORMS[work.form], DTYPES[work.dtype]
    run: Callable[[Any, bool], Tensor] = form.run  # takes the operands that the form makes
    operands = form.make(shape, dtype, "meta", channels_last=channels_last)
    previous = torch.get_float32_matmul_precision()
    try:
        for setting in PRODUCTS if isinstance(form, BlockForm) and dtype == torch.float32 else (previous,):
            torch.set_float32_matmul_precision(setting)
            y = run(operands, training)
            if training or isinstance(form, Kernel):
                torch.autograd.grad(y, operands.differentiable(), torch.empty_like(y))
    finally:
        torch.set_float32_matmul_precision(previous)


def _launch_running_statistics(shape: Shape) -> None:
    n, channels, height, width = shape
    mean, var, statistics = (torch.empty(size, device="meta") for size in (channels, channels, (2, channels)))
    batches = torch.empty((), dtype=torch.int64, device="meta")
    for momentum in (0.1, None):
        update_running_statistics(mean, var, batches, statistics, momentum, n * height * width)


def subject(call: Call, work: Work, shape: Shape) -> Subject:
    """Describe the compilation of a launch on x of this shape, and the requirements on its result."""
    passes = call.options.get("LAYOUT")  # products take channels_last only
    layout = str(passes or ("" if work.form == RUNNING_STATISTICS else "channels_last"))
    pooled = call.options.get("ACTIVATION") == "pool"
    scattered = layout != "channels_last" and (pooled or call.kernel.__name__ == "_pool")
    activations = {
        name: value
        for name, value in zip(call.kernel.arg_names, call.arguments, strict=False)
        if isinstance(value, Tensor) and _is_activation(name, value, shape) and not (pooled and name == "dy_ptr")
    }
    unit = WIDE // 8 // DTYPES[work.dtype].itemsize if passes else SPECIALISED
    allowed = all(_allows_wide(layout, value.shape, unit) for value in activations.values())
    return Subject(
        compilation=of_call(call, work.arch),
        dtype=work.dtype if layout else "fp32",
        layout=layout,
        activations=tuple(activations),
        wide=tuple(activations) if allowed and not scattered else (),
    )


def _is_activation(name: str, tensor: Tensor, shape: Shape) -> bool:
    parameters = "filters" in name or "partials" in name
    return tensor.is_floating_point() and tensor.dim() == len(shape) and tensor.shape[0] == shape[0] and not parameters


def _allows_wide(layout: str, shape: Sequence[int], unit: int) -> bool:
    """Whether the contiguous dimension is a multiple of `unit`, or in NCHW of 16."""
    _, channels, height, width = shape
    return channels % unit == 0 if layout == "channels_last" else height * width % SPECIALISED == 0


def judged(subject: Subject) -> tuple[dict[str, object], list[str]]:
    """Compile a subject; return the figures of its row, none if it does not compile, and its faults."""
    try:
        figures = compiled(subject.compilation)
    except (TritonError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return {}, [f"does not compile: {reason}"]
    warps, of_warps, limited_by = occupancy(subject.compilation, figures)
    row: dict[str, object] = {
        "registers": figures.registers,
        "spill_bytes": figures.spill_bytes,
        "stack_bytes": figures.stack_bytes,
        "static_shared_bytes": figures.static_shared_bytes,
        "dynamic_shared_bytes": figures.dynamic_shared_bytes,
        "load_bits": figures.load_bits,
        "store_bits": figures.store_bits,
        "main_bits": min((figures.narrowest_bits.get(name, 0) for name in subject.main), default=None),
        "resident_warps": warps,
        "of_warps": of_warps,
        "limited_by": limited_by,
    }
    return row, list(faults(subject, figures))


def faults(subject: Subject, figures: Figures) -> Iterator[str]:
    """Describe each fault of a compiled kernel, and what to do about it."""
    machine = ARCHITECTURES[subject.compilation.arch]
    smaller = (
        f"give its pass a smaller tile on {machine.name} (TILES_ON in kernels/launch/passes.py, or "
        "kernels/products/tiles.py)"
    )
    if figures.stack_bytes or figures.spill_bytes:
        yield (
            f"spills {figures.spill_bytes} bytes of a thread's registers to local memory (a stack frame of "
            f"{figures.stack_bytes} bytes): {smaller}, or keep fewer values alive"
        )
    shared = figures.static_shared_bytes + figures.dynamic_shared_bytes
    if shared > machine.shared_bytes:
        yield f"needs {shared} bytes of shared memory, but a program may use {machine.shared_bytes} at most: {smaller}"
    for name in subject.wide:
        bits = figures.narrowest_bits.get(name)
        if bits is None:
            yield f"has no access to {name} that kernels/audit/ptx.py recognises: correct the kernel or that module"
        elif bits < WIDE:
            yield (
                f"accesses {name} {bits} bits at a time where {WIDE} are possible: tell the compiler what is "
                "contiguous (tl.multiple_of, tl.max_contiguous), or give a thread more elements "
                "(kernels/launch/passes.py)"
            )


def _row(subject: Subject, uses: list[Use], figures: dict[str, object], described: list[str]) -> dict[str, object]:
    """Return one compilation and its results as plain values; each fault begins with its name."""
    compilation, constants = subject.compilation, dict(subject.compilation.constants)
    forms, modes = (list(dict.fromkeys(values)) for values in ([use.form for use in uses], [use.mode for use in uses]))
    shapes = list(dict.fromkeys("x".join(map(str, use.shape)) for use in uses))
    circumstances = filter(None, (subject.dtype, subject.layout, " and ".join(modes), shapes[0]))
    name = f"{subject.kernel} of {', '.join(forms)} ({', '.join(circumstances)}) on {compilation.arch}"
    return {
        "arch": compilation.arch,
        "kernel": subject.kernel,
        "forms": forms,
        "modes": modes,
        "dtype": subject.dtype,
        "layout": subject.layout,
        "shapes": shapes,
        "wide": bool(subject.wide),
        **{side.lower(): constants.get(side) for side in SIDES},
        "precision": constants.get("PRECISION"),
        "num_warps": compilation.num_warps,
        "num_stages": compilation.num_stages,
        **figures,
        "faults": [f"{name} {fault}" for fault in described],
    }
