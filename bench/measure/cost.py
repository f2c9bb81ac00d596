"""The least work of a case: FLOPs and bytes that no scheme can do without. Worker side."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.measure.memory import saved_storages
from bench.types import Cost, Mode, Precision
from resnet.models.build import build_network
from resnet.models.table import network_of

WIDTH: dict[Precision, int] = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}  # bytes of an activation
OPTIMIZER_BYTES = 6 * 4  # a parameter: fp32 gradient written and read, momentum and parameter read and written
COUNTED_BATCH = 2  # BatchNorm cannot train on one value a channel; everything counted here is linear in the batch


class _Count(NamedTuple):
    """Counts of one image: FLOPs, and elements between memory and the products; and of the model: elements."""

    flops: int
    inputs: int
    outputs: int
    input_gradients: int
    weights: int
    parameters: int


def cost(model: str, mode: Mode, precision: Precision, batch_size: int, image_size: int) -> Cost:
    """FLOPs and minimal bytes of one step.

    FLOPs: the convolutions and the linear layer, two for each multiply-add, as torch.utils.flop_counter counts them;
    training adds their gradients for weights and inputs (none for the images). They are those of the definition of a
    convolution, so that Winograd's algorithm, which multiplies less, may go below a floor made of them. Pointwise
    operators, BatchNorm, pooling, the loss and the optimizer are not counted: below 1 % of a step.

    Bytes: every convolution and linear layer reads its input once and writes its output once, and reads its weights
    once, all at the precision's width (fp32, tf32: 4 bytes; bf16, fp16: 2). Training adds for each: the gradient of its
    output read once, its input read again for the gradient of the weights, the gradient of its input written (not for
    the images); and for each parameter the optimizer's fp32 traffic: gradient written and read, momentum and parameter
    read and written. Everything pointwise (BatchNorm, ReLU, residual add, pooling, loss) is taken as fused into the
    products at no cost: the floor of every scheme that fuses pointwise operators. It does not assume that products are
    chained in cache, so a step whose working set stays in the last-level cache can go below it.

    The first call of a process imports torch's decompositions (about a second). A process that will be forked may call
    it for `infer` to have them loaded, but not for `train`: a backward pass starts autograd's threads.

    Raises:
        ValueError: unknown model.
    """
    train = mode == "train"
    count = _count(model, train, image_size)
    width = WIDTH[precision]
    per_image = count.inputs + count.outputs
    if train:
        per_image += count.outputs + count.inputs + count.input_gradients
    optimizer = count.parameters * OPTIMIZER_BYTES if train else 0
    return Cost(
        flops=count.flops * batch_size,
        bytes=width * (per_image * batch_size + count.weights) + optimizer,
    )


def activation_bytes(model: str, batch_size: int, image_size: int, width: int) -> int:
    """Estimate of what autograd keeps for the backward pass of eager training, with `width` bytes an element."""
    return _saved_elements(model, image_size) * batch_size // COUNTED_BATCH * width


@lru_cache(maxsize=64)
def _count(model: str, train: bool, image_size: int) -> _Count:
    network, images = _on_meta(model, image_size)
    network.train(train)
    inputs = outputs = gradients = weights = 0

    def add(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        nonlocal inputs, outputs, gradients, weights
        inputs += arguments[0].numel()
        outputs += output.numel()
        gradients += arguments[0].numel() if arguments[0].requires_grad else 0
        weights += sum(parameter.numel() for parameter in module.parameters())

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        logits = network(images)
        if train:
            logits.sum().backward()
    return _Count(
        flops=counter.get_total_flops() // COUNTED_BATCH,
        inputs=inputs // COUNTED_BATCH,
        outputs=outputs // COUNTED_BATCH,
        input_gradients=gradients // COUNTED_BATCH,
        weights=weights,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


@lru_cache(maxsize=64)
def _saved_elements(model: str, image_size: int) -> int:
    """Elements kept at COUNTED_BATCH; an index of a pooling counts as one."""
    network, images = _on_meta(model, image_size)
    kept = saved_storages(lambda: network(images), network)
    return sum(saved.nbytes // saved.dtype.itemsize for saved in kept)


def _on_meta(model: str, image_size: int) -> tuple[nn.Module, Tensor]:
    with torch.device("meta"):
        return build_network(model), torch.empty(network_of(model).images(COUNTED_BATCH, image_size))
