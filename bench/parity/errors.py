"""Errors of a tensor against its reference. Worker side."""

from math import inf, isfinite

import torch
from torch import Tensor


def relative_error(out: Tensor | None, ref: Tensor) -> float:
    """||out - ref|| / ||ref|| in fp64; infinity for no tensor, another shape, NaN, or noise where ref is zero."""
    if out is None or out.shape != ref.shape:
        return inf
    exact = ref.to(out.device).double()
    difference = torch.linalg.vector_norm(out.detach().double() - exact).item()
    norm = torch.linalg.vector_norm(exact).item()
    if difference == 0.0:
        return 0.0
    return difference / norm if norm and isfinite(difference) else inf


def scale_error(out: Tensor | None, ref: Tensor) -> float:
    """|<out, ref> / <ref, ref> - 1| in fp64: 0.05 for a gradient 5 % too long; infinity as in `relative_error`."""
    if out is None or out.shape != ref.shape:
        return inf
    exact = ref.to(out.device).double()
    along = abs(((out.detach().double() - exact) * exact).sum().item())
    if along == 0.0:
        return 0.0
    squared = exact.square().sum().item()
    return along / squared if squared and isfinite(along) else inf
