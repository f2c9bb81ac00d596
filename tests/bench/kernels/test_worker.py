"""The kernel bench: which ops, what they move, and what becomes of them."""

from collections import Counter
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from bench.kernels import worker
from bench.kernels.operands import directions, floor_bytes, launches, middle_convolution
from bench.kernels.ops import filled, layers, ops
from bench.kernels.types import Check, Direction, KernelMode, Op, Request, Survey
from bench.kernels.worker import measure, survey
from bench.machine import environment
from bench.types import Ceilings, Device, Environment, TensorError
from bench.workers.errors import is_for_people
from kernels.bottleneck.forms import BLOCKS, BlockForm, BlockOperands
from kernels.kernel import Operands
from kernels.launch.passes import TILES, Tile, tile_for
from kernels.launch.runtime import Call, recorded
from kernels.table import FORMS, KERNELS
from resnet.fused.fuse import fuse
from resnet.models.build import build_model
from tests.support.exhaustive import exhaustive

DEVICE: Device = "cuda" if torch.cuda.is_available() else "cpu"
ONLY_CPU = pytest.mark.skipif(DEVICE == "cuda", reason="what a machine without a GPU does")
NORMS = [kernel.name for kernel in KERNELS]
BOTTLENECKS = [block.name for block in BLOCKS]
MODES: tuple[KernelMode, ...] = get_args(KernelMode)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

SMALL = Op(form="bn+relu", shape=(2, 16, 8, 8), dtype="fp32", mode="train")
WHERE = Survey(
    request=Request(device="cpu", batch_size=2),
    device="cpu",
    environment=Environment(facts={"device": "a CPU"}),
    ceilings=Ceilings(copy_bytes_per_s=1e10, matmul_flops_per_s={}),
    cache_bytes=1 << 16,
    architecture="sm_90",
    seconds=0.01,
    why_untimed="it is interpreted",
    ops=(SMALL,),
)

# Touches of tensors like x, and of tensors like y, that the mathematics asks for (see act.py and
# pool.py in kernels/batch_norm): forward and backward, in training and in evaluation.
Touches = tuple[tuple[int, int], tuple[int, int]]
FLOORS: dict[str, dict[KernelMode, Touches]] = {
    "bn": {"train": ((2, 1), (3, 2)), "eval": ((1, 1), (2, 1))},
    "bn+relu": {"train": ((2, 1), (3, 2)), "eval": ((1, 1), (2, 1))},
    "bn+residual+relu": {"train": ((3, 1), (4, 2)), "eval": ((2, 1), (3, 1))},
    "dual": {"train": ((4, 1), (6, 2)), "eval": ((2, 1), (4, 1))},
    "stem": {"train": ((2, 1), (3, 2)), "eval": ((1, 1), (2, 1))},
}


# --- which ops --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("resnet18", {"stem": 1, "bn+relu": 8, "bn+residual+relu": 5, "dual": 3}),
        (
            "resnet50",
            {"stem": 1, "bn+relu": 32, "bn+residual+relu": 12, "dual": 4}
            | {"bottleneck": 12, "bottleneck+projection": 1, "bottleneck+downsampling": 3},
        ),
    ],
)
def test_forms_of_a_network(model: str, expected: dict[str, int]) -> None:
    found = Counter(form for form, _ in layers(model, 4, 64))
    assert found == expected
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in build_model(model).modules())
    assert sum(found[form] for form in NORMS) + found["dual"] == norms, "each BatchNorm once, two in a dual"


def test_blocks_of_a_network() -> None:
    """Each with the shape of what it takes, behind the BatchNorms."""
    found = layers("resnet50", 4, 64)
    blocks = [layer for layer in found if layer[0] in BOTTLENECKS]
    assert found[-len(blocks) :] == blocks
    assert list(dict.fromkeys(blocks)) == [
        ("bottleneck+projection", (4, 64, 16, 16)),
        ("bottleneck", (4, 256, 16, 16)),
        ("bottleneck+downsampling", (4, 256, 16, 16)),
        ("bottleneck", (4, 512, 8, 8)),
        ("bottleneck+downsampling", (4, 512, 8, 8)),
        ("bottleneck", (4, 1024, 4, 4)),
        ("bottleneck+downsampling", (4, 1024, 4, 4)),
        ("bottleneck", (4, 2048, 2, 2)),
    ]


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_ops_of_a_network_launch_what_the_fused_network_launches(model: str) -> None:
    """Kernel, grid and tensors of every launch of a step, forward and backward."""
    with torch.device("meta"):
        network, images = fuse(build_model(model)), torch.empty(4, 3, 64, 64)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):  # on "meta" it does not hand the memory format on
            module.register_forward_hook(lambda _, __, out: out.contiguous(memory_format=torch.channels_last))
    with recorded("sm_90") as calls:
        network(images).sum().backward()
    of_network = Counter(footprint(call) for call in calls if call.kernel.__name__ != "_update_running")

    of_ops: Counter[object] = Counter()
    for op in ops(Request(models=(model,), forms=tuple(NORMS), dtypes=("fp32",), batch_size=4, image_size=64)):
        for launched in launches(op, "sm_90").values():
            of_ops.update({footprint(one.call): op.layers.get(model, 0) for one in launched})
    assert +of_ops == of_network


def test_blocks_of_a_network_launch_what_the_gram_network_launches() -> None:
    """The same, of all that the blocks launch."""
    with torch.device("meta"):
        network = fuse(build_model("resnet50"), gram=True, rebuild=True)
        images = torch.empty(4, 3, 64, 64)
    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda _, __, out: out.contiguous(memory_format=torch.channels_last))  # as above
    with recorded("sm_90") as calls:
        network(images).sum().backward()
    stem = launches(Op(form="stem", shape=(4, 64, 32, 32), dtype="fp32", mode="train"), "sm_90").values()
    of_stem = Counter(footprint(one.call) for launched in stem for one in launched)
    of_network = Counter(footprint(call) for call in calls if call.kernel.__name__ != "_update_running")

    request = Request(models=("resnet50",), forms=tuple(BOTTLENECKS), dtypes=("fp32",), batch_size=4, image_size=64)
    of_ops = of_stem
    for op in ops(request):
        for launched in launches(op, "sm_90").values():
            for one in launched:
                of_ops[footprint(one.call)] += op.layers["resnet50"]
    assert of_ops == of_network


def footprint(call: Call) -> object:
    """What is launched, and on what."""
    tensors = [tuple(argument.shape) for argument in call.arguments if isinstance(argument, Tensor)]
    return call.kernel.__name__, call.grid, tuple(tensors)


def test_the_most_telling_ops_come_first() -> None:
    request = Request(models=("resnet50", "resnet18"), shapes=((3, 5, 7, 9),), dtypes=("bf16", "fp32"), batch_size=8)
    found = ops(request)
    assert [op.shape for op in found[: len(FORMS)]] == [(3, 5, 7, 9)] * len(FORMS)
    first_dtype = found[: len(found) // 2]
    assert {op.dtype for op in first_dtype} == {"bf16"}
    kinds = ["asked" if op.shape[0] == 3 else next(iter(op.layers), "plain") for op in first_dtype]
    assert kinds == sorted(kinds, key=["asked", "resnet50", "resnet18", "plain"].index)
    assert len({op.key for op in found}) == len(found), "each once"


def test_forms_can_be_chosen() -> None:
    found = ops(Request(models=("resnet18",), forms=("dual",), batch_size=8))
    assert [(op.form, op.shape[1]) for op in found] == [("dual", 128), ("dual", 256), ("dual", 512)]


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [((3, 1, 7, 9), BOTTLENECKS[1:2]), ((3, 3, 7, 9), BOTTLENECKS[1:]), ((3, 4, 7, 9), BOTTLENECKS)],
)
def test_a_block_needs_channels_in_its_middle(shape: tuple[int, int, int, int], blocks: list[str]) -> None:
    assert [op.form for op in ops(Request(shapes=(shape,), batch_size=8))] == [*NORMS, *blocks]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(models=("resnet18",), forms=("dua",), batch_size=8), "unknown form dua: choose from bn, "),
        (Request(models=("resnet18",), forms=("bottleneck",), batch_size=8), "bottleneck occurs in none of resnet18"),
        (Request(models=("resnet19",), batch_size=8), "unknown model 'resnet19'"),
    ],
)
def test_what_is_unknown_is_refused_and_not_measured(request_: Request, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops(request_)
    with pytest.raises(ValueError, match=message) as refused:
        survey(request_)
    assert is_for_people(refused.value), "else it would be a crash"


# --- what they move ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", NORMS)
def test_floor_is_what_the_mathematics_asks_for_and_launches_keep_to_it(form: str, mode: KernelMode) -> None:
    op = Op(form=form, shape=(256, 64, 57, 56), dtype="bf16", mode=mode)
    x_bytes = 2 * 256 * 64 * 57 * 56
    y_bytes = 2 * 256 * 64 * 29 * 28 if form == "stem" else x_bytes
    for direction, (like_x, like_y) in zip(DIRECTIONS, FLOORS[form][mode], strict=True):
        floor = floor_bytes(op, direction)
        assert floor is not None
        assert floor == like_x * x_bytes + like_y * y_bytes
        moved = sum(launch.bytes for launch in launches(op, "sm_90")[direction])
        assert 1 <= moved / floor < 1.11, "masks of a bit, places of a byte, and what has a value a channel"


def kinds(form: str, mode: KernelMode = "train") -> list[str]:
    op = replace(SMALL, form=form, mode=mode)
    return [launch.kind for launched in launches(op, "sm_90").values() for launch in launched]


def test_launches_are_named_by_the_pass_whose_tile_they_have() -> None:
    named = {form: kinds(form) for form in ("bn", "dual", "stem")}
    assert named == {
        "bn": ["statistics", "apply", "reduce", "gradient"],
        "dual": ["statistics", "apply dual", "reduce dual", "gradient dual"],
        "stem": ["statistics", "pool", "reduce pool", "gradient pool"],
    }
    assert {kind for of_form in named.values() for kind in of_form} == set(TILES)


def test_launches_of_a_block_are_named_by_their_kernels_and_passes() -> None:
    assert kinds("bottleneck") == [
        "conv_statistics", "apply", "statistics", "prepare", "gram", "covariance", "varied", "filter_statistics",
        "block_end", "filter_gradient", "parameter_gradients", "inner_filters", "inner_gradient", "gradient", "apply",
        "reduce", "gradient", "filter_gradient", "input_gradient",
    ]  # fmt: skip
    assert kinds("bottleneck", "eval") == ["block_end", "block_end"], "no backward pass"
    assert directions(replace(SMALL, form="bottleneck", mode="eval")) == ("forward",)


@pytest.mark.parametrize(("form", "inside", "outside", "stride"), [
    ("bottleneck", 64, 256, 1), ("bottleneck+projection", 256, 1024, 1), ("bottleneck+downsampling", 128, 512, 2),
])  # fmt: skip
def test_products_of_a_block_compute_what_its_convolutions_do(
    form: str, inside: int, outside: int, stride: int
) -> None:
    """Forward the 1x1 convolutions and the Gram matrices of what goes into the last, backward twice that and H."""
    op = Op(form=form, shape=(256, 256, 56, 56), dtype="bf16", mode="train")
    rows, out_rows = 256 * 56**2, 256 * 56**2 // stride**2
    projected = form != "bottleneck"
    first, last, shortcut = rows * 256 * inside, out_rows * inside * outside, projected * out_rows * 256 * outside
    forward, backward = (launches(op, "sm_90")[direction] for direction in DIRECTIONS)
    of_gram = sum(launch.flops for launch in forward if launch.kind == "gram")
    products = [launch for launch in forward if launch.kind in ("conv_statistics", "block_end")]
    assert sum(launch.flops for launch in products) == 2 * (first + last + shortcut)
    assert out_rows * inside**2 <= of_gram <= 2 * out_rows * (inside**2 + projected * 256**2)
    of_rows = [launch for launch in backward if launch.kind in ("filter_gradient", "inner_gradient", "input_gradient")]
    inner = out_rows * (inside**2 + projected * 256**2)  # times H
    assert sum(launch.flops for launch in of_rows) == 2 * (2 * (first + last + shortcut) + inner)
    y, out = 2 * rows * inside, 2 * out_rows * inside  # bytes
    between = middle_convolution(op, "forward")
    assert between.flops == 2 * out_rows * 9 * inside**2
    assert between.read + between.written == y + out + 2 * 9 * inside**2
    back = middle_convolution(op, "backward")
    assert back.flops == 2 * between.flops
    assert back.read + back.written == 2 * out + 2 * y + 2 * (2 * 9 * inside**2), "the gradient of out twice"


def test_a_tile_holds_inside_its_block_and_for_its_pass() -> None:
    op = replace(SMALL, shape=(64, 64, 56, 56))

    def warps() -> list[object]:
        return [launch.call.options["num_warps"] for launch in launches(op, "sm_90")["forward"]]

    before = warps()
    with tile_for("apply", Tile(kibibytes=16, num_warps=2)):
        assert warps() == [before[0], 2]
    assert warps() == before


# --- what becomes of an op --------------------------------------------------------------------------------------------


@ONLY_CPU
def test_without_a_gpu_all_but_the_fused_kernels_is_timed() -> None:
    outcome = measure(SMALL, WHERE)
    assert outcome.check is not None
    assert outcome.check.passed
    assert [(row.direction, row.launch) for row in outcome.rows] == [
        ("forward", ""), ("forward", "statistics"), ("forward", "apply"),
        ("backward", ""), ("backward", "reduce"), ("backward", "gradient"),
    ]  # fmt: skip
    for row in outcome.rows:
        assert row.rounds.keys() == (set() if row.launch else {"eager", "compile", "copy"})
        assert row.untimed == {"fused": "it is interpreted"}
        assert row.failures == {}
    for whole in (row for row in outcome.rows if not row.launch):
        parts = [row for row in outcome.rows if row.launch and row.direction == whole.direction]
        assert whole.bytes == sum(row.bytes for row in parts)
    assert not outcome.failed


@ONLY_CPU
def test_a_block_in_evaluation_runs_forward_alone_and_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    differentiated: list[bool] = []
    oracle = BlockForm.oracle

    def watched(form: BlockForm, operands: BlockOperands, training: bool) -> Tensor:
        y = oracle(form, operands, training)
        differentiated.append(y.requires_grad)
        return y

    monkeypatch.setattr(BlockForm, "oracle", watched)
    outcome = measure(replace(SMALL, form="bottleneck", mode="eval"), WHERE)
    assert [(row.direction, row.launch) for row in outcome.rows] == [
        ("forward", ""), ("forward", "block_end"), ("forward", "block_end"),
    ]  # fmt: skip
    assert outcome.check is not None
    assert outcome.check.passed
    assert differentiated == [False, False], "in fp64 and at its own precision"


@ONLY_CPU
@pytest.mark.parametrize("mode", ["eval", *exhaustive("train")])
def test_a_block_is_timed_like_the_others_where_it_can_be(monkeypatch: pytest.MonkeyPatch, mode: KernelMode) -> None:
    monkeypatch.setattr(worker, "compiled", lambda function: function)
    outcome = measure(replace(SMALL, form="bottleneck", mode=mode), replace(WHERE, why_untimed="", cache_bytes=1))
    assert not outcome.failed
    assert [row.direction for row in outcome.rows if not row.launch] == list(DIRECTIONS[: 1 if mode == "eval" else 2])
    for row in outcome.rows:
        assert row.rounds.keys() == ({"fused", "copy"} if row.launch else {"fused", "eager", "compile", "copy"})
    assert all(row.flops for row in outcome.rows if row.launch in ("", "block_end", "gram", "inner_gradient"))


@ONLY_CPU
def test_a_block_is_only_checked_where_its_kernels_cannot_be_timed() -> None:
    outcome = measure(replace(SMALL, form="bottleneck"), WHERE)
    assert outcome.check is not None
    assert outcome.check.passed
    assert not outcome.failed
    assert all(row.untimed == {"fused": "it is interpreted"} and not row.rounds for row in outcome.rows)
    assert all(row.bytes for row in outcome.rows)


@ONLY_CPU
def test_no_compiler_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cpp_compiler", lambda: None)
    outcome = measure(SMALL, WHERE)
    assert outcome.rows[0].rounds.keys() == {"eager", "copy"}
    assert "C++ compiler" in outcome.rows[0].untimed["compile"]
    assert not outcome.failed


@ONLY_CPU
def test_a_contender_that_breaks_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(operands: Operands, training: bool) -> Tensor:
        raise RuntimeError(f"no kernel for {operands.x.dtype} in {training}\nand more")

    monkeypatch.setattr(worker, "compiled", lambda _function: broken)
    outcome = measure(SMALL, WHERE)
    assert outcome.rows[0].rounds.keys() == {"eager", "copy"}
    assert outcome.rows[0].failures == {"compile": "RuntimeError: no kernel for torch.float32 in True"}
    assert outcome.failed


@ONLY_CPU
def test_what_is_wrong_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    worst = TensorError(tensor="dx", error=0.5, eager_error=1e-3, tolerance=3e-3)
    monkeypatch.setattr(worker, "check", lambda *_: Check(batch_size=2, tensors=4, worst=worst))
    outcome = measure(SMALL, WHERE)
    assert outcome.wrong
    assert [row.rounds for row in outcome.rows] == [{}] * 6
    assert all(row.bytes for row in outcome.rows), "what it moves is known"


@pytest.mark.parametrize(
    ("request_", "models", "batch_sizes"),
    [
        (Request(device="cpu"), ("resnet50", "resnet18"), {8}),
        (Request(device="cpu", models=("resnet34",), batch_size=3), ("resnet34",), {3}),
        (Request(device="cpu", shapes=((5, 4, 3, 2),)), (), {5}),
        (Request(device="cpu", models=("resnet18",), shapes=((5, 4, 3, 2),)), ("resnet18",), {5, 8}),
    ],
)
def test_what_is_left_out_is_the_device_s_to_say(
    request_: Request, models: tuple[str, ...], batch_sizes: set[int]
) -> None:
    complete = filled(request_, "cpu")
    assert complete.models == models
    assert {op.shape[0] for op in ops(complete)} == batch_sizes
    assert filled(Request(), "cuda").batch_size == 256


@ONLY_CPU
def test_survey_tells_where_it_is() -> None:
    found = survey(Request(device="cpu"))
    assert isinstance(found, Survey)
    assert found.request == filled(Request(), "cpu")
    assert found.why_untimed
    assert found.cache_bytes > 2**18
    assert 1e8 < found.ceilings.copy_bytes_per_s < 1e13


def test_survey_refuses_a_cpu_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "INTERPRETED", False)
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1"):
        survey(Request(device="cpu"))
