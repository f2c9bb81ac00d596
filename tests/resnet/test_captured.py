"""Captured steps: on a GPU, and whole steps also with CUDA graphs played on the CPU."""

import pytest
import torch
from torch import Tensor

from resnet.paths import PATHS_BY_NAME, Path
from resnet.program import LOSS_SCALE, Program
from tests.support.graphs_on_cpu import GraphOnCpu
from tests.support.shallow_programs import EAGER, make_batch, make_program, relative, run

ON_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")]

pytestmark = pytest.mark.usefixtures("narrow_depth", "flags_restored")


@pytest.fixture(
    params=[
        ("cuda-graph", "cpu"),
        ("triton-cuda-graph", "cpu"),
        pytest.param(("cuda-graph", "cuda"), marks=ON_CUDA),
        pytest.param(("triton-cuda-graph", "cuda"), marks=ON_CUDA),
        pytest.param(("compile-reduce-overhead", "cuda"), marks=ON_CUDA),
    ],
    ids="-".join,
)
def captured(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A path that captures, and where it runs."""
    name, device = request.param
    if device == "cpu":
        request.getfixturevalue("graphs_on_cpu")
    return PATHS_BY_NAME[name], device


def state(program: Program) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in program.model.state_dict().items()}


def test_captured_training_is_training_from_the_first_step_on(captured: tuple[Path, str]) -> None:
    path, device = captured
    program = make_program(path, "train", device=device)
    before = state(program)
    for _ in ("fresh", "gone back"):
        eager = make_program(EAGER, "train", device=device)
        for seed in (2, 3):
            logits, loss = run(program, seed)
            wanted, wanted_loss = run(eager, seed)
            assert relative(logits, wanted) < 1e-3
            assert loss is not None
            assert wanted_loss is not None
            assert loss.item() == pytest.approx(wanted_loss.item(), rel=1e-3)
            after = program.model.state_dict()
            for key, value in eager.model.state_dict().items():
                moved, right = after[key].double() - before[key].double(), value.double() - before[key].double()
                assert relative(moved, right) < 0.2, key  # a ReLU may flip; a step too many is off by 1
        program.load(before)


def test_captured_inference_follows_its_inputs(captured: tuple[Path, str]) -> None:
    path, device = captured
    program, eager = make_program(path, "infer", device=device), make_program(EAGER, "infer", device=device)
    before = state(program)
    for seed in (1, 2, 3):
        assert relative(run(program, seed)[0], run(eager, seed)[0]) < 1e-4
    assert all(torch.equal(value, before[key]) for key, value in program.model.state_dict().items())


def test_a_captured_step_leaves_its_inputs_alone(captured: tuple[Path, str]) -> None:
    path, device = captured
    program = make_program(path, "infer", device=device)
    images, labels = make_batch(1, device)
    images = program.place(images)
    kept = images.clone()
    program.step(images, labels)
    program.step(images + 1.0, labels)
    assert torch.equal(images, kept)


def test_captured_training_in_fp16_keeps_the_loss_scale_and_learns(captured: tuple[Path, str]) -> None:
    path, device = captured
    program, eager = make_program(path, "train", "fp16", device=device), make_program(EAGER, "train", device=device)
    for seed in (1, 2):
        before = state(program)["fc.weight"]
        run(program, seed)
        run(eager, seed)
        assert not torch.equal(program.model.get_parameter("fc.weight"), before)
    assert program.scaler.get_scale() == LOSS_SCALE
    gradient, wanted = program.gradients()["fc.weight"], eager.gradients()["fc.weight"]
    assert gradient is not None
    assert wanted is not None
    assert relative(gradient, wanted) < 0.1


# What plays CUDA graphs on the CPU.


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_played_graph_runs_when_it_is_replayed_and_not_before() -> None:
    static, total = torch.ones(3), torch.zeros(3)
    graph = torch.cuda.CUDAGraph()
    assert isinstance(graph, GraphOnCpu)
    with torch.cuda.graph(graph):
        doubled = static * 2
        total += doubled
    assert total.tolist() == [0.0] * 3
    for value in (1.0, 10.0):
        static.fill_(value)
        graph.replay()
        assert doubled.tolist() == [2 * value] * 3
    assert total.tolist() == [22.0] * 3


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_played_capture_forbids_asking_for_a_value() -> None:
    value = torch.ones(())
    with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        value.item()
