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

from collections.abc import Callable, Mapping, Sequence

from bench.parity.tolerances import last_stage_values, tolerance
from bench.types import Case, ParityResult, TensorError

_KEPT_FAILURES = 20  # of a failed check, in execution order


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
    values = last_stage_values(case, batch_size)
    rows = [
        TensorError(
            tensor=name,
            error=error,
            eager_error=eager[name],
            tolerance=tolerance(name, eager[name], case, values),
        )
        for errors, eager in checks
        for name, error in errors.items()
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


def _layer(tensor: str) -> str:
    """`grad:layer1.0.conv1.weight@1` -> `layer1.0.conv1`; empty for output and loss."""
    kind, _, rest = tensor.partition(":")
    return rest.rpartition("@")[0].rpartition(".")[0] if rest else "" if kind else kind
