"""Helpers for the autograd formulas of fused ops."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


def present(tensor: Tensor | None, like: Tensor) -> Tensor:
    """Return the tensor, or an empty one [0] in place of None, which an op cannot return."""
    return like.new_empty((0,)) if tensor is None else tensor


def absent(gradients: Iterable[Tensor], inputs: Iterable[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Replace the gradients of missing inputs with None."""
    return tuple(None if tensor is None else gradient for gradient, tensor in zip(gradients, inputs, strict=True))


def save_for_backward(ctx: Any, output: tuple[Tensor, ...], *inputs: Tensor | None) -> None:  # noqa: ANN401 - torch's
    """Save the inputs and all outputs but y for the backward pass; those outputs are not differentiable."""
    _, *extras = output
    ctx.mark_non_differentiable(*extras)
    ctx.set_materialize_grads(False)  # else autograd writes zeros as the gradients of those outputs
    ctx.save_for_backward(*inputs, *extras)


def differentiable(op: Any, formula: Callable[..., tuple[Tensor | None, ...]], setup: Callable[..., None]) -> None:  # noqa: ANN401 - a CustomOpDef
    """Register the gradients of an op that is differentiable in its first output only; without dy, all are None."""

    def differentiate(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        return (None,) * len(op._opoverload._schema.arguments) if dy is None else formula(ctx, dy)

    op.register_autograd(differentiate, setup_context=setup)


def differentiable_once(op: Any) -> None:  # noqa: ANN401 - a CustomOpDef
    """Make a backward op raise an error that explains why it cannot be differentiated again."""

    def refuse(ctx: Any, *gradients: Tensor) -> None:  # noqa: ANN401, ARG001 - torch's
        raise RuntimeError(
            f"{op._qualname} cannot be differentiated: fused BatchNorm has no second derivative; for double backward "
            "(create_graph=True) use the plain network, resnet.unfuse(model)"
        )

    op.register_autograd(refuse)
