from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bench.measure import memory
from bench.measure.memory import baseline, graph_pool_bytes, measure, saved_storages
from bench.workers.parent import call
from resnet.models.build import build_model
from resnet.paths import PATHS_BY_NAME
from resnet.program import Program
from tests.support import faulty

BATCH, WIDTH, HIDDEN, CLASSES = 4, 32, 64, 10


class TwoLayers:
    """A program whose bytes can be counted by hand: linear, ReLU, linear, cross-entropy; SGD with momentum."""

    def __init__(self, *, train: bool) -> None:
        self.model = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9) if train else None
        self.ballast = 0
        self.steps = 0

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.inference_mode(self.optimizer is None):
            logits: Tensor = self.model(images)
            return logits if self.optimizer is None else F.cross_entropy(logits, labels)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        self.steps += 1
        passing = torch.ones(self.ballast, dtype=torch.uint8)  # written to: resident
        output = self.forward(images, labels)
        if self.optimizer is not None:
            self.optimizer.zero_grad()
            output.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        del passing
        return output


PARAMETER_BYTES = 4 * (WIDTH * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES)
# Kept: the input (gradient of the first weight), the ReLU's output (itself and the second weight, one storage), the
# log-probabilities, the labels and the loss's total weight.
SAVED_BYTES = 4 * BATCH * (WIDTH + HIDDEN + CLASSES) + 8 * BATCH + 4


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, WIDTH), torch.randint(CLASSES, (BATCH,))


def test_breakdown_of_training_by_hand(batch: tuple[Tensor, Tensor]) -> None:
    found = measure(TwoLayers(train=True), *batch, baseline_bytes=0)
    assert found.parameter_bytes == PARAMETER_BYTES
    assert found.gradient_bytes == PARAMETER_BYTES
    assert found.optimizer_bytes == PARAMETER_BYTES
    assert found.activation_bytes == SAVED_BYTES
    assert found.peak_allocated_bytes == found.process_bytes
    assert found.workspace_bytes == (found.peak_allocated_bytes or 0) - 3 * PARAMETER_BYTES - SAVED_BYTES
    assert (found.peak_reserved_bytes, found.graph_pool_bytes) == (None, None)


def test_breakdown_of_inference(batch: tuple[Tensor, Tensor]) -> None:
    found = measure(TwoLayers(train=False), *batch, baseline_bytes=0)
    assert found.parameter_bytes == PARAMETER_BYTES
    assert (found.gradient_bytes, found.optimizer_bytes, found.activation_bytes) == (0, 0, 0)


def test_counting_activations_leaves_gradients_and_optimizer_alone(batch: tuple[Tensor, Tensor]) -> None:
    program = TwoLayers(train=True)
    program.step(*batch)
    assert program.optimizer is not None
    before = [parameter.grad.clone() for parameter in program.model.parameters() if parameter.grad is not None]
    momenta = [slot["momentum_buffer"].clone() for slot in program.optimizer.state.values()]
    assert memory._activation_bytes(program, *batch) == SAVED_BYTES
    after = [parameter.grad for parameter in program.model.parameters() if parameter.grad is not None]
    assert len(before) == len(after) == 4
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    slots = program.optimizer.state.values()
    assert all(torch.equal(a, slot["momentum_buffer"]) for a, slot in zip(momenta, slots, strict=True))


def test_shared_storages_count_once_and_views_count_whole() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4, bias=False))
    x = torch.randn(2, 4, 4, requires_grad=True)

    def product() -> Tensor:
        first, second = model(x), model(x)
        result: Tensor = first * second
        return result

    kept = saved_storages(product, model)
    # the input, kept by both calls and seen as a view; the two outputs; the weight is the model's own
    assert sorted(saved.nbytes for saved in kept) == [2 * 4 * 4, 2 * 4 * 4, 2 * 16 * 4]


def test_the_graph_is_freed() -> None:
    model = nn.Linear(8, 8)
    freed = []

    class Tracked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: "torch.autograd.function.FunctionCtx", x: Tensor) -> Tensor:
            ctx.save_for_backward(x * 2)
            return x + 1

    class Watch:
        def __del__(self) -> None:
            freed.append(True)

    def forward() -> Tensor:
        output: Tensor = Tracked.apply(model(torch.ones(2, 8)))
        assert output.grad_fn is not None
        cast("dict[str, Watch]", output.grad_fn.metadata)["watch"] = Watch()
        return output

    assert [saved.nbytes for saved in saved_storages(forward, model)] == [64, 64]
    assert freed == [True]


def test_peak_of_the_loop_is_seen_and_earlier_peaks_are_not(batch: tuple[Tensor, Tensor]) -> None:
    program = TwoLayers(train=True)
    program.step(*batch)
    start = baseline()
    torch.ones(512 * 2**20, dtype=torch.uint8)  # an earlier phase, forgotten by the reset
    small = measure(program, *batch, baseline_bytes=start)
    program.ballast = 256 * 2**20
    large = measure(program, *batch, baseline_bytes=start)
    assert small.peak_allocated_bytes is not None
    assert large.peak_allocated_bytes is not None
    assert small.peak_allocated_bytes < 128 * 2**20
    assert 240 * 2**20 < large.peak_allocated_bytes < 400 * 2**20
    assert large.process_bytes == start + large.peak_allocated_bytes


def test_memory_that_was_kept_while_timing_is_not_in_the_peak() -> None:
    assert 215e6 < call(faulty.peak_after_timing) < 240e6


def test_without_a_baseline_the_peak_is_unknown(batch: tuple[Tensor, Tensor]) -> None:
    found = measure(TwoLayers(train=True), *batch)
    assert (found.peak_allocated_bytes, found.workspace_bytes) == (None, None)
    assert found.process_bytes is not None
    assert found.activation_bytes == SAVED_BYTES


def test_without_proc_the_kernel_is_asked(monkeypatch: pytest.MonkeyPatch, batch: tuple[Tensor, Tensor]) -> None:
    monkeypatch.setattr(memory, "STATUS", Path("missing/status"))
    monkeypatch.setattr(memory, "CLEAR_REFS", Path("missing/clear_refs"))
    assert baseline() == 0
    found = measure(TwoLayers(train=True), *batch, baseline_bytes=0)
    assert found.process_bytes is not None
    assert found.process_bytes > 50 * 2**20  # bytes, not the kibibytes that getrusage tells


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("FIND was unable to find an engine to execute")]
)
def test_a_forward_that_does_not_fit_leaves_the_activations_unknown(
    batch: tuple[Tensor, Tensor], error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = TwoLayers(train=True)
    program.step(*batch)

    def too_large(*_: Tensor) -> Tensor:
        raise error

    monkeypatch.setattr(program, "forward", too_large)
    found = memory._memory(program, footprint=10**9, activation_bytes=memory._activation_bytes(program, *batch))
    assert (found.activation_bytes, found.workspace_bytes) == (None, None)
    assert found.gradient_bytes == PARAMETER_BYTES


def test_a_forward_that_fails_otherwise_is_an_error(
    batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = TwoLayers(train=True)

    def mistaken(*_: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(program, "forward", mistaken)
    with pytest.raises(RuntimeError, match="mat1"):
        memory._activation_bytes(program, *batch)


def test_private_pools_are_told_from_the_common_one() -> None:
    segments = [
        {"segment_pool_id": (0, 0), "total_size": 100, "allocated_size": 60},
        {"segment_pool_id": (0, 1), "total_size": 40, "allocated_size": 10},
        {"segment_pool_id": (1, 0), "total_size": 8, "allocated_size": 8},
    ]
    assert graph_pool_bytes(segments) == (48, 30)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 10**6)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 2 * 10**6)
    pool = {"segment_pool_id": (0, 1), "total_size": 500, "allocated_size": 200}
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: [pool])
    monkeypatch.setattr(memory, "gpu_uuid", lambda: "GPU-1")
    monkeypatch.setattr(memory, "process_bytes", lambda uuid: {"GPU-1": 3 * 10**6}[uuid])
    return calls


def test_cuda_reads_the_allocator_after_a_reset(batch: tuple[Tensor, Tensor], fake_cuda: list[str]) -> None:
    program = TwoLayers(train=True)
    found = memory._measure_cuda(program, *batch)
    assert program.steps == memory.STEPS
    assert fake_cuda == ["synchronize", "empty_cache", "reset_peak_memory_stats", "synchronize"]
    assert (found.peak_allocated_bytes, found.peak_reserved_bytes) == (10**6 + 300, 2 * 10**6)
    assert (found.process_bytes, found.graph_pool_bytes) == (3 * 10**6, 500)
    assert found.workspace_bytes == 10**6 + 300 - 3 * PARAMETER_BYTES - SAVED_BYTES


def test_the_workspace_is_never_negative(batch: tuple[Tensor, Tensor]) -> None:
    program = TwoLayers(train=True)
    program.step(*batch)
    assert memory._memory(program, footprint=10, activation_bytes=5).workspace_bytes == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resnet_program(precision: str) -> None:
    model = build_model("resnet18", num_classes=CLASSES)
    state = sum(tensor.untyped_storage().nbytes() for tensor in (*model.parameters(), *model.buffers()))
    program = Program(PATHS_BY_NAME["eager"], model, mode="train", precision=precision, device="cpu")  # type: ignore[arg-type]
    images, labels = program.place(torch.randn(2, 3, 32, 32)), torch.randint(CLASSES, (2,))
    found = measure(program, images, labels, baseline_bytes=0)
    assert found.parameter_bytes == state
    assert found.gradient_bytes == sum(4 * parameter.numel() for parameter in model.parameters())
    assert found.activation_bytes is not None
    assert found.activation_bytes > 2 * 64 * 16 * 16 * 2  # at least the stem's output
    assert found.workspace_bytes is not None
    assert found.workspace_bytes >= 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("path", ["eager", "cuda-graph"])
def test_a_resnet_program_on_cuda(path: str) -> None:
    model = build_model("resnet18", num_classes=CLASSES)
    program = Program(PATHS_BY_NAME[path], model, mode="train", precision="fp32", device="cuda")
    images, labels = program.place(torch.randn(2, 3, 64, 64)), torch.randint(CLASSES, (2,), device="cuda")
    program.step(images, labels)
    found = measure(program, images, labels)
    assert found.parameter_bytes is not None
    assert found.activation_bytes
    assert found.peak_allocated_bytes is not None
    assert found.peak_reserved_bytes is not None
    assert found.parameter_bytes < found.peak_allocated_bytes <= found.peak_reserved_bytes
    assert bool(found.graph_pool_bytes) == (path == "cuda-graph")
