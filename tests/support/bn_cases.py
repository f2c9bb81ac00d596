"""What the tests of fused BatchNorm share: operands, all that comes out of a form by name, and how wrong it may be."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.batch_norm import act, pool
from kernels.kernel import Kernel, Norm, Operands, Shape, make_operands
from kernels.launch import passes, runtime
from kernels.table import KERNELS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Run = Callable[[Operands, bool], Tensor]

# Without a ReLU, or with a shortcut as it is: what `bn+relu` and `dual` have besides, in the same kernels.
LESS = ("bn", "bn+residual+relu")
kinds = pytest.mark.parametrize(
    "kernel",
    [pytest.param(kernel, marks=[pytest.mark.exhaustive] if kernel.name in LESS else []) for kernel in KERNELS],
    ids=lambda kernel: kernel.name,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """A result passes where error <= max(times * eager's error, floor); error is ||out - fp64|| / ||fp64||."""

    times: float
    floor: float


# Rounding to a format is off by up to u, its unit roundoff, and by u / sqrt(3) in the mean square.
HALF = 1 / math.sqrt(3)
TOLERANCES: dict[torch.dtype, Tolerance] = {  # by the format of the result
    # Rounded once, from fp32. What eager's own rounding decides by chance (the larger of two in the max-pool, the side
    # of zero of a sum) is decided for kernels by chance as well: a quarter more.
    torch.bfloat16: Tolerance(times=1.25, floor=2**-8 * HALF),
    torch.float16: Tolerance(times=1.25, floor=2**-11 * HALF),
    # Eager takes its sums in fp64 on a CPU, kernels take them in fp32: some units.
    torch.float32: Tolerance(times=1.25, floor=32 * 2**-24),
    torch.float64: Tolerance(times=1.25, floor=32 * 2**-53),
}


def operands_of(
    kernel: Kernel, shape: Shape, dtype: torch.dtype = torch.float32, *, channels_last: bool = True, seed: int = 0
) -> Operands:
    return make_operands(kernel, shape, dtype, DEVICE, channels_last=channels_last, seed=seed)


def named(operands: Operands) -> dict[str, Tensor]:
    """What gets a gradient, by name."""
    found = {"x": operands.x, "z": operands.z, "weight": operands.norm.weight, "bias": operands.norm.bias}
    if operands.z_norm is not None:
        found |= {"z_weight": operands.z_norm.weight, "z_bias": operands.z_norm.bias}
    return {name: tensor for name, tensor in found.items() if tensor is not None and tensor.requires_grad}


def mapped(operands: Operands, change: Callable[[Tensor], Tensor]) -> Operands:
    """Operands of changed tensors: new leaves, which require a gradient where the old ones did."""

    def image(tensor: Tensor) -> Tensor:
        return change(tensor.detach()).detach().requires_grad_(tensor.requires_grad)

    def new(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else image(tensor)

    def norm(old: Norm) -> Norm:
        return Norm(new(old.weight), new(old.bias), new(old.running_mean), new(old.running_var), old.eps)

    z_norm = None if operands.z_norm is None else norm(operands.z_norm)
    return Operands(image(operands.x), norm(operands.norm), new(operands.z), z_norm)


def map_images(operands: Operands, change: Callable[[Tensor], Tensor]) -> Operands:
    """As `mapped`, x and z alone."""
    return mapped(operands, lambda tensor: change(tensor) if tensor.dim() == 4 else tensor)


def map_norms(operands: Operands, change: Callable[[Norm], Norm]) -> Operands:
    z_norm = None if operands.z_norm is None else change(operands.z_norm)
    return operands._replace(norm=change(operands.norm), z_norm=z_norm)


def random_like(y: Tensor, seed: int = 1234) -> Tensor:
    """Another seed than that of operands, or x might be y's gradient."""
    generator = torch.Generator(y.device).manual_seed(seed)
    return torch.randn(y.shape, generator=generator, device=y.device).to(y.dtype)


def results(run: Run, operands: Operands, training: bool, dy: Tensor | None = None) -> dict[str, Tensor]:
    """y, and the gradient of everything that requires one."""
    y = run(operands, training)
    inputs = named(operands)
    dy = random_like(y) if dy is None else dy.to(y.dtype)
    gradients = torch.autograd.grad(y, list(inputs.values()), dy)
    return {"y": y.detach()} | {f"d{name}": gradient for name, gradient in zip(inputs, gradients, strict=True)}


def error(out: Tensor, ref: Tensor) -> float:
    """||out - ref|| / ||ref||, or where ref is zero ||out||."""
    size = float(ref.double().norm())
    return float((out.double() - ref.double()).norm()) / (size or 1.0)


def violations(
    kernel: Kernel, operands: Operands, training: bool, *, run: Run | None = None, dy: Tensor | None = None
) -> list[str]:
    """The results of a form that are further from fp64 than they may be, each with its error and eager's."""
    eager = results(kernel.oracle, operands, training, dy)
    dy = random_like(eager["y"]) if dy is None else dy
    outs = results(run or kernel.run, operands, training, dy)
    assert {name: (out.shape, out.dtype) for name, out in outs.items()} == {
        name: (out.shape, out.dtype) for name, out in eager.items()
    }
    found = []
    for name, ref in results(kernel.oracle, mapped(operands, Tensor.double), training, dy).items():
        tolerance = TOLERANCES[outs[name].dtype]
        mine, theirs = error(outs[name], ref), error(eager[name], ref)
        if not mine <= max(tolerance.times * theirs, tolerance.floor):  # NaN never passes
            found.append(f"{name}: error {mine:.2e}, eager's {theirs:.2e}")
    return found


def statistics_of(kernel: Kernel, operands: Operands, training: bool) -> Tensor:
    """What a form says that it normalised by: mean and biased variance of x, then of z if that has its own."""
    if kernel.name == "stem":
        return pool.bn_pool(operands.x, operands.norm, training=training)[1]
    return act.bn_act(*operands, training=training)[1]


class Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every call of an op, and the arguments of ours."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.ours: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        self.names.append(op._schema.name)
        if op.namespace == "resbench":
            arguments = tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
            self.ours.append((op, arguments))
        return op(*args, **(kwargs or {}))


MANY_RUNS: Shape = (8, 8, 223, 225) if DEVICE == "cuda" else (2, 8, 33, 34)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors: eager is faster without threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def many_runs(monkeypatch: pytest.MonkeyPatch) -> Shape:
    """A shape that gives more runs than are merged at a time, each of several tiles, the last of them partial."""
    machine = runtime.Architecture(name="interpreter", multiprocessors=36)
    monkeypatch.setitem(runtime.ARCHITECTURES, "interpreter", machine)
    monkeypatch.setattr(passes, "INTERPRETED_TILE", passes.Tile(kibibytes=1, num_warps=1))
    return MANY_RUNS


@pytest.fixture
def narrow_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of channels where there are more than 8 channels."""
    monkeypatch.setattr(passes, "MOST_CHANNELS", passes.FEWEST_CHANNELS)


@pytest.fixture
def without_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op is the function underneath: `recorded` and dispatch modes see what it does."""
    for module in (act, pool):
        for name, op in list(vars(module).items()):
            if isinstance(op, CustomOpDef):
                monkeypatch.setattr(module, name, _underneath(op))


def _underneath(op: CustomOpDef) -> Callable[..., object]:
    setup, backward = op._setup_context_fn, op._backward_fn
    if setup is None or backward is None:  # a backward op
        return op._init_fn
    parts = {"forward": op._init_fn, "setup_context": setup, "backward": backward}
    plain: Any = type("Plain", (torch.autograd.Function,), {name: staticmethod(part) for name, part in parts.items()})
    return cast("Callable[..., object]", plain.apply)


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "every other channel": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "a window": lambda x: F.pad(x, (1, 2, 2, 1))[:, :, 2:-1, 1:-2],
    "some channels of channels_last": lambda x: torch.cat([x, x], dim=1)
    .contiguous(memory_format=torch.channels_last)[:, : x.shape[1]],
    "height and width changed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "channels before images": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "one image for all": lambda x: x[:1].expand_as(x),
    "one column for all": lambda x: x[..., :1].expand_as(x),
}  # fmt: skip
