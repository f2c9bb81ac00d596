"""The ops as torch sees them: schemas, fakes, compilation, export, checkpoints, autocast, and what they refuse."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch.utils.checkpoint import checkpoint

from kernels.batch_norm.act import bn_act
from kernels.batch_norm.pool import bn_pool
from kernels.batch_norm.statistics import update_running_statistics
from kernels.kernel import Kernel, Norm, Operands
from kernels.launch.runtime import recorded
from kernels.table import KERNELS, KERNELS_BY_NAME
from tests.support.bn_cases import DEVICE, Seen, kinds, map_images, mapped, named, operands_of, random_like, results
from tests.support.exhaustive import exhaustive

pytestmark = pytest.mark.usefixtures("one_thread")

forms = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
trainings = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])

SHAPE = (2, 11, 6, 5)
BACKEND = "inductor" if DEVICE == "cuda" else "aot_eager"  # the graph alone: in the interpreter the ops are opaque


def update(x: Tensor) -> None:
    c = x.shape[1]
    mean, var = torch.zeros(c, device=DEVICE), torch.ones(c, device=DEVICE)
    batches, statistics = torch.tensor(3, device=DEVICE), torch.rand(2, c, device=DEVICE)
    update_running_statistics(mean, var, batches, statistics, 0.1, 100)
    update_running_statistics(mean, var, batches, statistics, None, 100)


def calls() -> list[tuple[Any, tuple[Any, ...]]]:
    """Arguments of every op of the table, forward and backward, in both modes, and without parameters."""
    seen = Seen()
    for kernel in KERNELS:
        for training, dtype in ((True, torch.bfloat16), (False, torch.float32)):
            with seen:
                results(kernel.run, operands_of(kernel, SHAPE, dtype), training)
        bare = operands_of(kernel, SHAPE, channels_last=False)
        bare = bare._replace(norm=bare.norm._replace(weight=None, bias=None))
        with seen:
            results(kernel.run, bare, True)
    with seen:
        update(operands_of(KERNELS[0], SHAPE).x)
    return seen.ours


@pytest.mark.exhaustive
def test_every_op_passes_opcheck() -> None:
    """Schema, registration of autograd, fake implementation (shapes, dtypes, strides), and a compiled graph."""
    checked = set()
    for op, arguments in calls():
        torch.library.opcheck(op, arguments)
        checked.add(op._schema.name)
    table = {name for name in OPDEFS if name.startswith(("resbench::bn_act", "resbench::bn_pool", "resbench::update"))}
    assert checked == {name for name in table if "conv" not in name}


def of_leaves(kernel: Kernel, operands: Operands, training: bool) -> Callable[..., Tensor]:
    """A form as a function of its differentiable tensors."""

    def function(*leaves: Tensor) -> Tensor:
        given = dict(zip(named(operands), leaves, strict=True))
        norm = operands.norm._replace(weight=given["weight"], bias=given["bias"])
        z_norm = operands.z_norm
        if z_norm is not None:
            z_norm = z_norm._replace(weight=given["z_weight"], bias=given["z_bias"])
        return kernel.run(Operands(given["x"], norm, given.get("z"), z_norm), training)

    return function


@pytest.mark.parametrize("channels_last", [True, *exhaustive(False)], ids=["channels_last", "NCHW"])
@trainings
@forms
def test_gradients_against_differences(kernel: Kernel, training: bool, channels_last: bool) -> None:
    operands = operands_of(kernel, (2, 3, 4, 3), torch.float64, channels_last=channels_last)
    function = of_leaves(kernel, operands, training)
    assert torch.autograd.gradcheck(function, tuple(named(operands).values()), fast_mode=True)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(out, wanted[name]) for name, out in found.items())


@trainings
@forms
def test_compiled_without_a_graph_break(kernel: Kernel, training: bool, fresh_compiler: None) -> None:  # noqa: ARG001
    operands = operands_of(kernel, SHAPE)
    compiled = torch.compile(kernel.run, fullgraph=True, backend=BACKEND)
    assert equal(results(compiled, operands, training), results(kernel.run, operands, training))


@pytest.mark.exhaustive
def test_compiled_between_other_operations(fresh_compiler: None) -> None:  # noqa: ARG001
    """By Inductor, which may choose layouts for what lies around the ops; and the running statistics change."""
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 8, 3, padding=1).to(DEVICE)
    norm, pooled = (nn.BatchNorm2d(8).to(DEVICE) for _ in range(2))

    def network(x: Tensor) -> Tensor:
        norms = [Norm(of.weight, of.bias, None, None, of.eps) for of in (norm, pooled)]
        y, statistics = bn_act(conv(x).relu(), norms[0], x.repeat(1, 2, 1, 1)[:, :8] * 2, training=True)
        assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
        assert norm.num_batches_tracked is not None
        update_running_statistics(norm.running_mean, norm.running_var, norm.num_batches_tracked, statistics, 0.1, 84)
        return bn_pool(y.sigmoid(), norms[1], training=True)[0].square()

    def step(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        norm.reset_running_stats()
        x = random_like(torch.empty(2, 5, 7, 6, device=DEVICE)).requires_grad_()
        leaves = [x, *conv.parameters(), *norm.parameters(), *pooled.parameters()]
        y = function(x)
        return [y.detach(), *torch.autograd.grad(y.sum(), leaves), *(buffer.clone() for buffer in norm.buffers())]

    for found, wanted in zip(step(torch.compile(network, fullgraph=True)), step(network), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


class Block(nn.Module):
    """What a user exports: a convolution, then the end of a block, then the stem's pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        of = self.norm
        norm = Norm(of.weight, of.bias, of.running_mean, of.running_var, of.eps)
        return bn_pool(bn_act(self.conv(x), norm, x, training=False)[0], norm, training=False)[0]


def test_exported_for_evaluation() -> None:
    torch.manual_seed(0)
    block = Block().to(DEVICE).eval()
    x = torch.randn(2, 4, 7, 6, device=DEVICE)
    program = torch.export.export(block, (x,))
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"resbench.bn_act.default", "resbench.bn_pool.default"} <= targets
    assert torch.equal(program.module()(x), block(x))


@pytest.mark.parametrize("use_reentrant", [True, False])
@kinds
def test_checkpointed(kernel: Kernel, use_reentrant: bool) -> None:
    """Backward runs the forward pass again, and gets the same."""
    operands = operands_of(kernel, SHAPE)

    def run(of: Operands, training: bool) -> Tensor:
        y: Tensor = checkpoint(of_leaves(kernel, of, training), *named(of).values(), use_reentrant=use_reentrant)
        return y

    def step(function: Callable[[Operands, bool], Tensor], of: Operands) -> list[Tensor]:
        y = function(of, True)
        torch.autograd.backward(y, random_like(y))
        return [y, *(leaf.grad for leaf in named(of).values() if leaf.grad is not None)]

    found, wanted = step(run, mapped(operands, Tensor.clone)), step(kernel.run, mapped(operands, Tensor.clone))
    assert len(found) == len(named(operands)) + 1
    assert all(torch.equal(out, other) for out, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@kinds
def test_autocast_keeps_the_precision_of_x(kernel: Kernel, dtype: torch.dtype) -> None:
    operands = operands_of(kernel, SHAPE, dtype)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = results(kernel.run, operands, True)
    assert found["y"].dtype == dtype
    assert found["dweight"].dtype == torch.float32
    assert equal(found, results(kernel.run, operands, True))


@kinds
def test_runs_in_inference_mode(kernel: Kernel) -> None:
    operands = operands_of(kernel, SHAPE)
    with torch.inference_mode():
        y = kernel.run(operands, False)
    assert y.is_inference()
    assert torch.equal(y.clone(), kernel.run(operands, False))


@trainings
@kinds
def test_x_changed_before_backward_is_noticed(kernel: Kernel, training: bool) -> None:
    """Backward reads x again: a ReLU in place, or the next batch in the same tensor, must not pass unseen."""
    operands = operands_of(kernel, SHAPE)
    x = operands.x * 1
    y = kernel.run(operands._replace(x=x), training)
    x.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(y, torch.ones_like(y))


@trainings
@kinds
def test_the_result_may_be_changed_in_place(kernel: Kernel, training: bool) -> None:
    """As behind a ReLU of torch's: an in-place dropout, say."""
    operands = operands_of(kernel, SHAPE)
    y = kernel.run(operands, training)
    dy = torch.ones_like(y)
    (wanted,) = torch.autograd.grad(y, operands.x, dy, retain_graph=True)
    y.mul_(2.0)
    (found,) = torch.autograd.grad(y, operands.x, dy)
    assert torch.equal(found, 2 * wanted)


@trainings
@kinds
def test_double_backward_says_what_to_do(kernel: Kernel, training: bool) -> None:
    operands = operands_of(kernel, SHAPE)
    y = kernel.run(operands, training)
    (dx,) = torch.autograd.grad(y, operands.x, random_like(y).requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match=r"resbench::bn_\w+ cannot be differentiated: .* resnet\.unfuse"):
        torch.autograd.backward(dx, torch.ones_like(dx))


@trainings
@kinds
def test_nothing_asks_the_host(kernel: Kernel, training: bool, without_dispatcher: None) -> None:  # noqa: ARG001
    """Ops launch kernels, allocate, view, and in evaluation add up a small tensor: what a CUDA graph allows."""
    operands = operands_of(kernel, SHAPE)
    dy = torch.empty_like(kernel.run(operands, training))
    seen = Seen()
    with recorded("sm_90"), seen:
        torch.autograd.grad(kernel.run(operands, training), list(named(operands).values()), dy)
    allowed = {"empty_like", "empty", "new_empty", "new_empty_strided", "detach", "expand", "as_strided"}
    allowed |= set() if training else {"sum", "select", "_to_copy"}
    assert {name.removeprefix("aten::") for name in seen.names} <= allowed


def test_a_transposed_image_gives_the_same(fresh_compiler: None) -> None:  # noqa: ARG001
    """Strides that are neither layout's, through the compiler."""
    kernel = KERNELS_BY_NAME["bn+relu"]
    operands = map_images(operands_of(kernel, SHAPE), lambda x: x.transpose(2, 3))
    compiled = torch.compile(kernel.run, fullgraph=True, backend=BACKEND)
    assert equal(results(compiled, operands, True), results(kernel.run, operands, True))
