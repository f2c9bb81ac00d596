"""Operands of products and what plain PyTorch makes of them."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from tests.support.gram_cases import DEVICE, DTYPES, small_products  # noqa: F401 - a fixture


def random(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    values = torch.randn(size, generator=torch.Generator().manual_seed(sum(size) + seed)).to(DEVICE, dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(size) == 4 else values


def sums_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def rows(x: Tensor, stride: int = 1) -> Tensor:
    """[rows, C] in fp64 of the pixels that a stride takes."""
    return x[:, :, ::stride, ::stride].permute(0, 2, 3, 1).reshape(-1, x.shape[1]).double()


def image(matrix: Tensor, like: Tensor) -> Tensor:
    n, _, height, width = like.shape
    return matrix.reshape(n, height, width, -1).permute(0, 3, 1, 2)


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape
    error = float((found.double() - wanted.double()).norm() / wanted.double().norm())
    assert error < tolerance


def line_of(channels: int, dtype: torch.dtype) -> Tensor:
    """Mean, scale and shift of a BatchNorm."""
    mean, scale, shift = random(3, channels, dtype=sums_of(dtype))
    return torch.stack((mean, 1 + scale / 4, shift / 2))


def activated(x: Tensor, line: Tensor | None) -> Tensor:
    """relu(bn(x)) rounded to the dtype of x, or x; in that dtype."""
    if line is None:
        return x
    mean, scale, shift = (of.double()[:, None, None] for of in line)
    return F.relu(((x.double() - mean) * scale + shift).to(x.dtype))


def mask_of(kept: Tensor) -> Tensor:
    """Bits [N, C / 8, H, W] of [N, C, H, W] flags."""
    n, channels, height, width = kept.shape
    bits = F.pad(kept.to(torch.int32), (0, 0, 0, 0, 0, -channels % 8)).reshape(n, -1, 8, height, width)
    weights = (2 ** torch.arange(8, device=kept.device))[:, None, None]
    return (bits * weights).sum(2).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def normalised(y: Tensor, line: Tensor) -> Tensor:
    mean, scale, shift = line.double()[:, :, None, None]
    result: Tensor = (y - mean) * scale + shift
    return result


def spread(values: Tensor, like: Tensor, stride: int) -> Tensor:
    """To every stride-th pixel of every stride-th line, zero elsewhere."""
    whole = torch.zeros(like.shape[0], values.shape[1], *like.shape[2:], dtype=values.dtype, device=values.device)
    whole[:, :, ::stride, ::stride] = values
    return whole
