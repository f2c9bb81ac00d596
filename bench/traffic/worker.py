"""The bytes and FLOPs of one step of a network, for each way of running it. Worker side.

A path's own network runs on the device "meta", where tensors have shapes and no data (`bench.traffic.steps`), so that
what is counted is what would be launched. Schemes that cannot run like this are counted by formula
(`bench.traffic.formulas`). Loss, optimizer and casts of parameters, the same for all, are left out.
"""

import math
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from bench.traffic.formulas import Layer, Part
from bench.traffic.schemes import DECLARED, operations
from bench.traffic.steps import ARCHITECTURE, blocks, covered, step
from bench.traffic.types import Request, Traffic
from kernels.launch.runtime import recorded
from kernels.products.block_chain import chainable
from resnet.fused.fuse import fuse
from resnet.models.build import build_network
from resnet.models.resnet import Bottleneck
from resnet.models.table import network_of
from resnet.paths import PATHS_BY_NAME
from resnet.precision import DTYPES, set_product_precision


def count(request: Request) -> list[Traffic]:
    """One step of every scheme of a request, in its order."""
    set_product_precision(request.precision)
    network = plain_network(request)
    sizes = parts(network, request)
    return [
        Traffic(
            scheme=name,
            operations=operations(DECLARED[name], sizes, request.mode)
            if name in DECLARED
            else step(fused(network, name), images(request), train=request.mode == "train"),
        )
        for name in request.schemes
    ]


def plain_network(request: Request) -> nn.Module:
    """The network without data, as it is counted."""
    with torch.device("meta"):
        return as_counted(build_network(request.model), request)


def as_counted(network: nn.Module, request: Request) -> nn.Module:
    """The network, changed in place: filters in the precision that autocast would multiply in, BatchNorms in fp32."""
    network = network.to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(DTYPES[request.precision])
    return network.train(request.mode == "train")


def images(request: Request, device: str = "meta") -> Tensor:
    """The images of a step [N, C, H, W], uninitialised."""
    size = network_of(request.model).images(request.batch_size, request.image_size)
    return torch.empty(size, dtype=DTYPES[request.precision], device=device, memory_format=torch.channels_last)


def fused(network: nn.Module, name: str) -> nn.Module:
    path = PATHS_BY_NAME[name]
    return fuse(network, rebuild=path.rebuild, gram=path.gram) if path.fuse else network


def parts(network: nn.Module, request: Request) -> tuple[Part, ...]:
    """The plain network part by part, with the sizes of its layers' tensors in a step."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # input and result

    def remember(module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        seen[module] = (inputs[0], out)

    def layer(name: str, module: nn.Module) -> Layer:
        (inputs, outputs), weight = seen[module], cast("Tensor", module.weight)
        return Layer(
            name=name,
            inputs=inputs.nbytes,
            read=covered(inputs, weight, module.stride) if isinstance(module, nn.Conv2d) else inputs.nbytes,
            outputs=outputs.nbytes,
            weights=weight.nbytes,
            flops=2 * outputs.numel() * math.prod(weight.shape[1:]),
            width=outputs.itemsize,
            differentiates_inputs=module is not network.get_submodule("conv1"),
        )

    handles = [module.register_forward_hook(remember) for module in network.modules() if not list(module.children())]
    with torch.no_grad():
        network(images(request))
    for handle in handles:
        handle.remove()
    stem = layer("conv1", network.get_submodule("conv1"))
    pooling = next((module for name, module in network.named_children() if name == "maxpool"), None)
    pooled = 0 if pooling is None else seen[pooling][1].nbytes
    listed = [Part(name="stem", kind="stem", layers=(stem,), pooled=pooled, consumers=2)]
    before: nn.Module | None = None
    for name, block in blocks(network).items():
        shortcut = cast("nn.Sequential | None", block.downsample)
        listed.append(
            Part(
                name=name,
                kind="block",
                layers=tuple(
                    layer(label, conv) for label, conv in block.named_children() if isinstance(conv, nn.Conv2d)
                ),
                projection=None if shortcut is None else layer("projection", shortcut[0]),
                consumers=2,  # the next block's first convolution and its shortcut
                ends_in_product=isinstance(block, Bottleneck),
                chained=_chains(before, block, DTYPES[request.precision]),
            )
        )
        before = block
    listed[-1] = replace(listed[-1], consumers=1)
    linear = layer("fc", network.get_submodule("fc"))
    pooled = seen[network.get_submodule("avgpool")][0].nbytes
    return (*listed, Part(name="head", kind="head", layers=(linear,), pooled=pooled))


def _chains(before: nn.Module | None, block: nn.Module, dtype: torch.dtype) -> bool:
    """Whether `kernels.products.block_chain` can end a block and begin the next."""
    if not (isinstance(before, Bottleneck) and isinstance(block, Bottleneck)) or block.conv1.stride != (1, 1):
        return False
    projected = 0 if before.downsample is None else int(before.downsample[0].in_channels)  # type: ignore[arg-type]
    last, first = before.conv3, block.conv1
    with recorded(ARCHITECTURE):
        return chainable(dtype, last.in_channels, last.out_channels, first.out_channels, projected)
