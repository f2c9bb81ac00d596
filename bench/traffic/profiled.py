"""One step of a scheme with data, for a profiler to watch: `python -m bench.traffic.profiled REQUEST`. Worker side.

The networks are those that are counted (`bench.traffic.worker`), so that loss, optimizer and casts are left out here as
there.
"""

import sys
from collections.abc import Callable
from functools import partial

import msgspec
import torch
from torch import Tensor, nn

from bench.measure.inputs import make_model
from bench.traffic.schemes import runs_without_data
from bench.traffic.types import Request
from bench.traffic.worker import as_counted, fused, images
from resnet.folded.network import fold
from resnet.folded.products import fold_into_products
from resnet.models.table import network_of
from resnet.paths import PATHS
from resnet.precision import DTYPES, set_product_precision

SEED = 0
WARMUP_STEPS = 3  # compilation, cuDNN's search, choices by measuring, and the allocator's first requests

Make = Callable[[nn.Module, Request], nn.Module]


def _path_network(name: str, plain: nn.Module, _: Request) -> nn.Module:
    return fused(plain, name)


# The network of a scheme, made of the plain one. cuDNN's fused graphs are missing: PyTorch does not call them.
FACTORIES: dict[str, Make] = {
    **{path.name: partial(_path_network, path.name) for path in PATHS if runs_without_data(path)},
    "inductor": lambda plain, _: torch.compile(plain, dynamic=False),  # type: ignore[dict-item,return-value]
    "folded": lambda plain, request: fold(plain, DTYPES[request.precision]),
    "folded-triton": lambda plain, request: fold_into_products(plain, DTYPES[request.precision]),
}


def prepare(request: Request, device: str) -> Callable[[], tuple[Tensor, ...]]:
    """A step of the request's one scheme, to be called again and again on the same random data.

    It runs the forward pass and returns the logits or, in training, the backward pass too and returns the gradients of
    the parameters. They are not added to any: that is left out.
    """
    (scheme,) = request.schemes
    train = request.mode == "train"
    set_product_precision(request.precision)
    torch.manual_seed(SEED)
    plain = as_counted(make_model(request.model, SEED).to(device), request)
    batch = images(request, device).normal_()
    gradient = torch.randn(request.batch_size, network_of(request.model).classes, dtype=batch.dtype, device=device)
    network = FACTORIES[scheme](plain, request)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def step() -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(train):
            logits: Tensor = network(batch)
        if not train:
            return (logits,)
        return torch.autograd.grad(logits, parameters, gradient)

    return step


def profile(request: Request) -> None:
    """Warm the step up, then run it once more under the profiler."""
    step = prepare(request, "cuda")
    for _ in range(WARMUP_STEPS):
        step()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
    step()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    profile(msgspec.json.decode(sys.argv[1], type=Request))
