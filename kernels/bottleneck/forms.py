"""Bottleneck blocks as rows of a table: how to run them, their equivalent in plain PyTorch, and operands for both.

bottleneck                 C channels, C / 4 inside, identity shortcut: most blocks of a network
bottleneck+projection      C channels, C inside, 4 C out: the first block of the first stage
bottleneck+downsampling    C channels, C / 2 inside, 2 C out, half the height and width: that of the other stages
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from kernels.bottleneck.forward import bottleneck
from kernels.bottleneck.inference import bottleneck_inference, norm_line
from kernels.bottleneck.parts import CONV1, CONV2, CONV3, PROJECTION, Geometry
from kernels.kernel import Norm, Shape, plain_batch_norm

EPS = 1e-5
NAMES = ("1", "2", "3", " of the projection")  # of convolutions and BatchNorms, in the names of tensors


class BlockOperands(NamedTuple):
    """The inputs of a block: x [N, C, H, W]; filters and BatchNorms in the order of `kernels.bottleneck.forward`."""

    x: Tensor
    filters: tuple[Tensor, ...]
    norms: tuple[Norm, ...]
    geometry: Geometry

    def named(self) -> dict[str, Tensor]:
        """The tensors that require a gradient, by name, x first."""
        tensors: dict[str, Tensor | None] = {"x": self.x}
        for name, filters, norm in zip(NAMES, self.filters, self.norms, strict=False):
            tensors |= {f"filters{name}": filters, f"weight{name}": norm.weight, f"bias{name}": norm.bias}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.requires_grad}

    def differentiable(self) -> list[Tensor]:
        """The tensors that require a gradient, x first."""
        return list(self.named().values())


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockForm:
    """One kind of bottleneck; `run` and `oracle` are like those of `kernels.kernel.Kernel`."""

    name: str
    inside: float  # channels of the middle convolution, as a multiple of those of x
    outside: float  # channels of the result, likewise
    stride: int = 1
    projected: bool = True

    def run(self, operands: BlockOperands, training: bool) -> Tensor:
        """Return y [N, C_out, H', W']; in evaluation without gradients."""
        x, filters, norms, geometry = operands
        if training:
            y, _ = bottleneck(x, filters, norms, geometry)
            return y
        return bottleneck_inference(x, filters, [norm_line(norm, x) for norm in norms], geometry)

    def oracle(self, operands: BlockOperands, training: bool) -> Tensor:
        """Compute the same in plain PyTorch: every tensor is written, in the precision of x."""
        x, filters, norms, geometry = operands

        middle = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)

        def normalised(y: Tensor, place: int, *convolution: Any) -> Tensor:  # noqa: ANN401 - ints and lists of them
            return plain_batch_norm(F.conv2d(y, filters[place].to(y.dtype), None, *convolution), norms[place], training)

        y = F.relu(normalised(x, CONV1, geometry.first_stride))
        y = F.relu(normalised(y, CONV2, *middle))
        y = normalised(y, CONV3)
        return F.relu(y + (normalised(x, PROJECTION, geometry.projection_stride) if len(filters) > PROJECTION else x))

    def make(
        self,
        shape: Shape,
        dtype: torch.dtype,
        device: str,
        *,
        channels_last: bool = True,
        seed: int = 0,
        groups: int = 1,
    ) -> BlockOperands:
        """Make random operands that require gradients: x as after a ReLU, parameters as in training.

        Filters, parameters and statistics are fp32, or fp64 if x is; filters hold values that are exact in `dtype`, so
        that rounding them is not part of the error of any way to run a block.
        """
        generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)
        exact = torch.float64 if dtype == torch.float64 else torch.float32

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float32, device=device)

        def filters(columns: int, channels: int, side: int) -> Tensor:
            scaled: Tensor = normal(columns, channels, side, side) * (2 / (channels * side**2)) ** 0.5
            return scaled.to(dtype).to(exact).requires_grad_()

        def norm(channels: int) -> Norm:
            weight, bias, mean, deviation = (normal(channels).to(exact) for _ in range(4))
            weight, bias = (1 + weight / 4).requires_grad_(), (bias / 4).requires_grad_()
            return Norm(weight, bias, mean, 0.5 + deviation.square(), EPS)

        channels, inside, outside = shape[1], round(shape[1] * self.inside), round(shape[1] * self.outside)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x = F.relu(normal(*shape)).to(dtype).contiguous(memory_format=layout).requires_grad_()
        all_filters = [filters(inside, channels, 1), filters(inside, inside // groups, 3), filters(outside, inside, 1)]
        if self.projected:
            all_filters.append(filters(outside, channels, 1))
        norms = tuple(norm(int(tensor.shape[0])) for tensor in all_filters)
        geometry = Geometry(1, self.stride, [self.stride] * 2, [1, 1], [1, 1], groups)
        return BlockOperands(x, tuple(all_filters), norms, geometry)


BLOCKS: tuple[BlockForm, ...] = (
    BlockForm(name="bottleneck", inside=1 / 4, outside=1, projected=False),
    BlockForm(name="bottleneck+projection", inside=1, outside=4),
    BlockForm(name="bottleneck+downsampling", inside=1 / 2, outside=2, stride=2),
)
