"""The fused ops that a network is made of, and those that a request means. Worker side."""

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from bench.kernels.types import Op, Request, Shape
from bench.types import Device
from kernels.bottleneck.forms import BLOCKS, BlockForm
from kernels.kernel import Kernel
from kernels.table import FORMS
from resnet.models.build import build_network
from resnet.models.resnet import BasicBlock, Bottleneck, ResNet
from resnet.models.table import network_of

MODELS = ("resnet50", "resnet18")  # where nobody says; the first has nearly every shape
BATCH_SIZES: dict[Device, int] = {"cuda": 256, "cpu": 8}

PLAIN = "bn"  # in no fused network, but what the other forms are to be compared with


def layers(model: str, batch_size: int, image_size: int | None = None) -> list[tuple[str, Shape]]:
    """The fused ops of one step of a network in the order of the forward pass, as (form, shape of x).

    Images are of the network's own size unless another is given.

    The BatchNorm of a projected shortcut has no op of its own: it is half of the block's "dual". The
    network's bottlenecks come last, each a whole block in one op.

    Raises:
        ValueError: unknown model.
    """
    row = network_of(model)
    shapes: dict[nn.Module, Shape] = {}

    def remember(module: nn.Module, arguments: tuple[Tensor]) -> None:
        n, channels, height, width = arguments[0].shape
        shapes[module] = (n, channels, height, width)

    with torch.device("meta"):
        network = build_network(model)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | Bottleneck):
                module.register_forward_pre_hook(remember)
        network(torch.empty(row.images(batch_size, row.height(image_size))))
    norms = [("stem", shapes[network.bn1])] if isinstance(network, ResNet) else []
    blocks = []
    for block in network.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            *inner, last = (norm for name, norm in block.named_children() if name.startswith("bn"))
            norms += [("bn+relu", shapes[norm]) for norm in inner]
            norms.append(("bn+residual+relu" if block.downsample is None else "dual", shapes[last]))
        if isinstance(block, Bottleneck):
            blocks.append((_block_form(block), shapes[block]))
    return norms + blocks


def _block_form(block: Bottleneck) -> str:
    inside, outside = (conv.out_channels / block.conv1.in_channels for conv in (block.conv2, block.conv3))
    kind = (inside, outside, block.conv2.stride[0], block.downsample is not None)
    return next(form.name for form in BLOCKS if (form.inside, form.outside, form.stride, form.projected) == kind)


def filled(request: Request, device: Device) -> Request:
    """The request for a device, with nothing left out. Networks that nobody named are added only without shapes."""
    return replace(
        request,
        device=device,
        models=request.models or (() if request.shapes else MODELS),
        batch_size=request.batch_size or BATCH_SIZES[device],
    )


def ops(request: Request) -> tuple[Op, ...]:
    """Every op of a filled request once for each dtype: shapes asked for first, then networks, then plain BatchNorm.

    A block at a shape that has too few channels for it is left out.

    Raises:
        ValueError: unknown model or form, or a form that occurs nowhere.
    """
    assert request.batch_size is not None  # noqa: S101 - see `filled`
    unknown = [form for form in request.forms if form not in FORMS]
    if unknown:
        raise ValueError(f"unknown form {', '.join(unknown)}: choose from {', '.join(FORMS)}")
    counts: dict[tuple[str, Shape], dict[str, int]] = {
        (form, shape): {} for shape in request.shapes for form in FORMS if fits(form, shape)
    }
    for model in request.models:
        for form, shape in layers(model, request.batch_size, request.image_size):
            count = counts.setdefault((form, shape), {})
            count[model] = count.get(model, 0) + 1
    for form, shape in list(counts):
        if isinstance(FORMS[form], Kernel):
            counts.setdefault((PLAIN, shape), {})
    cells = [cell for cell in counts if not request.forms or cell[0] in request.forms]
    if not cells:
        raise ValueError(
            f"{', '.join(request.forms)} occurs in none of {', '.join(request.models)}: add --shape N,C,H,W"
        )
    return tuple(
        Op(form=form, shape=shape, dtype=dtype, mode=request.mode, layers=counts[form, shape])
        for dtype, (form, shape) in product(request.dtypes, cells)
    )


def fits(form: str, shape: Shape) -> bool:
    """Whether a form can have a shape: a block needs channels in its middle."""
    row = FORMS[form]
    return not isinstance(row, BlockForm) or shape[1] * row.inside >= 1
