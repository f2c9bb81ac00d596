"""conv(relu(bn(x))) without what lies between: parity of the op, its gradients, and torch's own checks of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from kernels.batch_norm.act_conv import bn_act_conv
from kernels.kernel import Norm
from tests.support.bn_cases import DEVICE, TOLERANCES, Seen, error, random_like

pytestmark = pytest.mark.usefixtures("one_thread")

trainings = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
layouts = pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "NCHW"])
CONVOLUTIONS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1, stride 2": {"kernel_size": 1, "stride": 2},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 3},
    "dilation": {"kernel_size": (3, 2), "padding": (2, 0), "dilation": 2},
}
LEAVES = ("x", "weight", "bias", "filters")
Leaves = dict[str, Tensor]
Run = Callable[[Leaves, nn.Conv2d, bool], Tensor]


def convolution(name: str) -> nn.Conv2d:
    return nn.Conv2d(9, 6, bias=False, **CONVOLUTIONS[name])  # type: ignore[arg-type]


def leaves_of(conv: nn.Conv2d, dtype: torch.dtype, *, channels_last: bool) -> Leaves:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(size, generator=generator).to(DEVICE, dtype)

    exact = torch.float64 if dtype == torch.float64 else torch.float32
    x = normal(2, 9, 7, 6, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    filters = normal(*conv.weight.shape, dtype=dtype)
    weight, bias = normal(9, dtype=exact), normal(9, dtype=exact)
    tensors = dict(zip(LEAVES, (x, weight, bias, filters), strict=True))
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def running(leaves: Leaves) -> tuple[Tensor, Tensor]:
    """Running statistics, somewhere near those of x."""
    return torch.full_like(leaves["weight"], 0.25), torch.full_like(leaves["weight"], 1.5)


def fused(leaves: Leaves, conv: nn.Conv2d, training: bool) -> Tensor:
    norm = Norm(leaves["weight"], leaves["bias"], *running(leaves), 1e-5)
    return bn_act_conv(leaves["x"], norm, conv, leaves["filters"], training=training)[0]


def plain(leaves: Leaves, conv: nn.Conv2d, training: bool) -> Tensor:
    mean, var = running(leaves)
    y = F.batch_norm(leaves["x"], mean, var, leaves["weight"], leaves["bias"], training, eps=1e-5)
    return F.conv2d(y.relu(), leaves["filters"], None, conv.stride, conv.padding, conv.dilation, conv.groups)


def results(
    run: Callable[[Leaves, nn.Conv2d, bool], Tensor], leaves: Leaves, conv: nn.Conv2d, training: bool
) -> Leaves:
    out = run(leaves, conv, training)
    gradients = torch.autograd.grad(out, list(leaves.values()), random_like(out))
    return {"out": out.detach()} | {f"d{name}": found for name, found in zip(LEAVES, gradients, strict=True)}


@trainings
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_parity(name: str, dtype: torch.dtype, channels_last: bool, training: bool) -> None:
    conv = convolution(name)
    leaves = leaves_of(conv, dtype, channels_last=channels_last)
    exact = {of: leaf.detach().double().requires_grad_() for of, leaf in leaves.items()}
    eager, found = (results(run, leaves, conv, training) for run in (plain, fused))
    for of, ref in results(plain, exact, conv, training).items():
        tolerance = TOLERANCES[found[of].dtype]
        assert found[of].dtype == eager[of].dtype
        assert error(found[of], ref) <= max(tolerance.times * error(eager[of], ref), tolerance.floor), of


@trainings
def test_gradients_against_differences(training: bool) -> None:
    conv = convolution("3x3")
    leaves = leaves_of(conv, torch.float64, channels_last=True)

    def function(*tensors: Tensor) -> Tensor:
        return fused(dict(zip(LEAVES, tensors, strict=True)), conv, training)

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True)


@trainings
@layouts
def test_the_ops_pass_opcheck(channels_last: bool, training: bool) -> None:
    conv = convolution("3x3")
    with Seen() as seen:
        results(fused, leaves_of(conv, torch.float32, channels_last=channels_last), conv, training)
    assert len(seen.ours) == 2
    for op, arguments in seen.ours:
        torch.library.opcheck(op, arguments)


def test_compiled_without_a_graph_break() -> None:
    conv = convolution("groups")
    leaves = leaves_of(conv, torch.float32, channels_last=True)
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="inductor" if DEVICE == "cuda" else "aot_eager")
    wanted = results(fused, leaves, conv, True)
    for of, found in results(compiled, leaves, conv, True).items():
        assert torch.equal(found, wanted[of])


def test_double_backward_says_what_to_do() -> None:
    conv = convolution("3x3")
    leaves = leaves_of(conv, torch.float32, channels_last=True)
    out = fused(leaves, conv, True)
    (dx,) = torch.autograd.grad(out, leaves["x"], random_like(out), create_graph=True)
    with pytest.raises(RuntimeError, match=r"bn_act_conv_backward cannot be differentiated: .* resnet\.unfuse"):
        torch.autograd.backward(dx, torch.ones_like(dx))


@pytest.mark.parametrize(
    "options",
    [{"bias": True}, {"padding_mode": "reflect", "padding": 1}, {"padding": "same"}],
    ids=["bias", "reflected", "same"],
)
def test_what_it_would_pass_over_is_refused(options: dict[str, object]) -> None:
    conv = nn.Conv2d(9, 6, 3, **{"bias": False, **options})  # type: ignore[arg-type]
    leaves = leaves_of(conv, torch.float32, channels_last=True)
    norm = Norm(leaves["weight"], leaves["bias"], None, None, 1e-5)
    with pytest.raises(ValueError, match=r"without bias, padded by a number of zeros, not Conv2d.* call conv\(bn_act"):
        bn_act_conv(leaves["x"], norm, conv, leaves["filters"], training=True)


def test_an_empty_input_is_refused() -> None:
    conv = convolution("3x3")
    leaves = leaves_of(conv, torch.float32, channels_last=True)
    norm = Norm(leaves["weight"], leaves["bias"], None, None, 1e-5)
    with pytest.raises(ValueError, match=r"no empty input \(\[0, 9, 7, 6\]\): call conv\(bn_act"):
        bn_act_conv(leaves["x"][:0], norm, conv, leaves["filters"], training=True)
