"""Is a program still right? Its errors against fp64, beside eager's own errors at the same precision.

For every tensor that matters, error = ||out - ref|| / ||ref|| (L2 norms, accumulated in fp64), ref being the reference
model in fp64 on the same inputs. Parameters and buffers are compared by how far they moved from the common start, so
that a wrong update shows at its own size and not at the size of the weight. A program passes when, for every tensor,

    error <= min(max(multiplier * eager_error, floor), CEILING)

There is no absolute tolerance: a gate that accepts zeros is no gate. NaN and infinity never pass.

In fp32, gradients of convolutions and of the classifier have a second error, `scale`: |<out, ref> / <ref, ref> - 1|,
the part that lies along the gradient. Noise has hardly any, so that a wrong factor shows through what flips (below)
allow.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from pathlib import Path

import torch
from torch import Tensor

from bench.measure.inputs import make_batch
from bench.types import Case, ParityResult, TensorError
from resnet.program import Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far from fp64 a path may be at one precision."""

    multiplier: float
    forward: float  # floor for what the first forward pass makes: output, loss and buffers of step 1
    backward: float  # floor for gradients, and for everything that they have moved


# Another order of summation or another rounding point moves an error by a small factor, never by orders of magnitude.
# The floors are for tensors where eager happens to be lucky, a scalar loss above all: a few units of rounding of the
# precision's products, after the accumulation over some tens of layers.
TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(multiplier=4.0, forward=1e-4, backward=1e-4),
    "tf32": Tolerance(multiplier=3.0, forward=5e-3, backward=2e-2),  # 10-bit mantissa: unit roundoff 4.9e-4
    "fp16": Tolerance(multiplier=3.0, forward=5e-3, backward=2e-2),  # 10-bit mantissa: unit roundoff 4.9e-4
    "bf16": Tolerance(multiplier=3.0, forward=2e-2, backward=5e-2),  # 7-bit mantissa: unit roundoff 3.9e-3
}
# Where a value lies within rounding of zero, two right programs may put it on different sides of the ReLU. One such
# flip among the n values of a ReLU of the last stages moves everything that a backward pass has touched, in one of the
# programs and not in the other. The floors, by kind of tensor in units of 1 / sqrt(n), were set by trial, not derived:
# about twice the largest error by which right paths of resnet18 and resnet50 were seen to differ. Least of all moves
# the part along a gradient, for a flip has no direction of its own.
FLIPS = {"grad": 16.0, "param": 16.0, "buffer": 2.0, "output": 1.0, "loss": 1.0, "scale": 2.0}
CEILING = 0.9  # whatever eager's error: a gradient left out has an error of 1

Batches = Iterator[tuple[Tensor, Tensor]]  # images [N, 3, H, W] and labels [N]

_KEPT_FAILURES = 20  # of a failed check, in execution order


def trajectory(program: Program, state: Mapping[str, Tensor], batches: Batches) -> Iterator[tuple[str, Tensor | None]]:
    """Run one step a batch from `state` and yield what it produced, in execution order, as (name, tensor).

    Names are those of `TensorError.tensor`. A tensor is valid until the next one is asked for; None stands for a
    gradient that is not there. Parameters and buffers come as their difference to `state`, in fp64.
    """
    train = program.mode == "train"
    if train:
        program.load(state)
    number = 0
    for number, (images, labels) in enumerate(batches, start=1):
        logits, loss = program.step(program.place(images), labels)
        if train and number == 1:
            yield from _moved(program, state, "buffer", number)
        yield f"output@{number}", logits
        if loss is not None:
            yield f"loss@{number}", loss
        if train and number == 1:
            for name, gradient in reversed(program.gradients().items()):
                yield f"grad:{name}@{number}", gradient
            yield from _moved(program, state, "param", number)
    if train and number > 1:
        yield from _moved(program, state, "buffer", number)
        yield from _moved(program, state, "param", number)


def _moved(program: Program, state: Mapping[str, Tensor], kind: str, number: int) -> Iterator[tuple[str, Tensor]]:
    tensors = program.model.named_parameters() if kind == "param" else program.model.named_buffers()
    for name, tensor in tensors:
        yield f"{kind}:{name}@{number}", tensor.detach().double() - state[name].to(tensor.device).double()


def batches(batch_size: int, image_size: int, device: str, *, seed: int, steps: int) -> Batches:
    """`steps` fresh batches. Another seed, other inputs: no check sees what another has seen."""
    return (make_batch(batch_size, image_size, seed * 1000 + step, device) for step in range(steps))


def save_reference(program: Program, state: Mapping[str, Tensor], inputs: Batches, file: Path) -> None:
    """Write the trajectory of an fp64 program to `file`: name -> fp64 tensor on the CPU."""
    tensors = {name: None if t is None else t.detach().cpu().clone() for name, t in trajectory(program, state, inputs)}
    torch.save(tensors, file)


def errors(program: Program, state: Mapping[str, Tensor], inputs: Batches, reference: Path) -> dict[str, float]:
    """Relative L2 error of each tensor of the program's trajectory against a saved reference, in execution order."""
    expected = torch.load(reference, weights_only=True, mmap=True)
    found: dict[str, float] = {}
    for name, out in trajectory(program, state, inputs):
        ref = expected[name]
        found[name] = relative_error(out, ref)
        if program.precision == "fp32" and name.startswith("grad:") and ref.dim() > 1:
            found[name.replace("grad:", "scale:")] = scale_error(out, ref)
    missing = {name: inf for name in expected if name not in found}
    return found | missing


def relative_error(out: Tensor | None, ref: Tensor) -> float:
    """||out - ref|| / ||ref|| in fp64; infinity for no tensor, another shape, NaN, or noise where ref is zero."""
    if out is None or out.shape != ref.shape:
        return inf
    wanted = ref.to(out.device).double()
    difference = torch.linalg.vector_norm(out.detach().double() - wanted).item()
    norm = torch.linalg.vector_norm(wanted).item()
    if difference == 0.0:
        return 0.0
    return difference / norm if norm and isfinite(difference) else inf


def scale_error(out: Tensor | None, ref: Tensor) -> float:
    """|<out, ref> / <ref, ref> - 1| in fp64: 0.05 for a gradient 5 % too long; infinity as in `relative_error`."""
    if out is None or out.shape != ref.shape:
        return inf
    wanted = ref.to(out.device).double()
    along = abs(((out.detach().double() - wanted) * wanted).sum().item())
    if along == 0.0:
        return 0.0
    squared = wanted.square().sum().item()
    return along / squared if squared and isfinite(along) else inf


def tolerance(tensor: str, eager_error: float, case: Case, values: int) -> float:
    """The largest error of `tensor` that passes, beside eager's; `values` is what `last_stage_values` gives."""
    limit = TOLERANCES[case.precision]
    kind = re.split("[:@]", tensor)[0]
    before_backward = tensor.endswith("@1") and kind in {"output", "loss", "buffer"}
    forward = case.mode == "infer" or before_backward
    floor = limit.forward if forward else max(limit.backward, FLIPS[kind] / sqrt(values))
    return min(max(limit.multiplier * eager_error, floor), CEILING)


def verdict(
    checks: Sequence[tuple[Mapping[str, float], Mapping[str, float]]],
    *,
    case: Case,
    batch_size: int,
    note: str = "",
    locate: Callable[[], str] = lambda: "",
) -> ParityResult:
    """Judge checks of one case, each (errors of the path, errors of eager) by tensor in execution order.

    `locate` is asked for the first layer that diverges where the failing tensors themselves do not tell.
    """
    values = last_stage_values(batch_size, case.image_size)
    rows = [
        TensorError(
            tensor=name,
            error=error,
            eager_error=eager[name],
            tolerance=tolerance(name, eager[name], case, values),
        )
        for found, eager in checks
        for name, error in found.items()
    ]
    failures = [row for row in rows if not row.passed]
    return ParityResult(
        batch_size=batch_size,
        tensors=len(rows),
        worst=max(rows, key=lambda row: row.severity),
        failures=tuple(failures[:_KEPT_FAILURES]),
        failed=len(failures),
        first_layer=(_layer(failures[0].tensor) or locate() or failures[0].tensor) if failures else "",
        note=note,
    )


def last_stage_values(batch_size: int, image_size: int) -> int:
    """How many values a ReLU inside a block of the last stage puts out, the fewest of all: N * H * W * C."""
    side = -(-image_size // 32)
    return batch_size * side * side * 512


def _layer(tensor: str) -> str:
    """`grad:layer1.0.conv1.weight@1` -> `layer1.0.conv1`; empty for output and loss."""
    kind, _, rest = tensor.partition(":")
    return rest.rpartition("@")[0].rpartition(".")[0] if rest else "" if kind else kind
