"""What the autograd formulas of fused ops share."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


def present(tensor: Tensor | None, like: Tensor) -> Tensor:
    """An op returns no None: [0] stands for it."""
    return like.new_empty((0,)) if tensor is None else tensor


def absent(gradients: Iterable[Tensor], inputs: Iterable[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients of those inputs that were there."""
    return tuple(None if of is None else gradient for gradient, of in zip(gradients, inputs, strict=True))


def keep(ctx: Any, output: tuple[Tensor, ...], *inputs: Tensor | None) -> None:  # noqa: ANN401 - torch's
    """Save inputs for backward, and all that the op returned besides y, which has no gradient."""
    _, *others = output
    ctx.mark_non_differentiable(*others)
    ctx.set_materialize_grads(False)  # zeros for those others would be written for nothing
    ctx.save_for_backward(*inputs, *others)


def differentiable(op: Any, formula: Callable[..., tuple[Tensor | None, ...]], setup: Callable[..., None]) -> None:  # noqa: ANN401 - a CustomOpDef
    """Register the gradients of an op whose first output alone has one; where that got none, no input gets one."""

    def differentiate(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        return (None,) * len(op._opoverload._schema.arguments) if dy is None else formula(ctx, dy)

    op.register_autograd(differentiate, setup_context=setup)


def differentiable_once(op: Any) -> None:  # noqa: ANN401 - a CustomOpDef
    """Let a backward op say what is wrong where somebody differentiates it again."""

    def refuse(ctx: Any, *gradients: Tensor) -> None:  # noqa: ANN401, ARG001 - torch's
        raise RuntimeError(
            f"{op._qualname} cannot be differentiated: fused BatchNorm has no second derivative; for double backward "
            "(create_graph=True) take the plain network, resnet.unfuse(model)"
        )

    op.register_autograd(refuse)
