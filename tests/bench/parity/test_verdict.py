from math import inf, nan, sqrt
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.measure.inputs import make_model
from bench.parity import reference, tolerances, trajectory
from bench.parity.errors import relative_error, scale_error
from bench.parity.tolerances import CEILING, FLIPS, TOLERANCES, tolerance
from bench.parity.verdict import verdict
from bench.types import Case, Mode, Settings
from resnet.models.resnet import ResNet
from resnet.paths import PATHS_BY_NAME
from resnet.precision import Precision
from resnet.program import Program
from tests.support.inputs import batch, batches, reference_model
from tests.support.narrow_networks import NARROW18

STEPS = 2
LARGE = 10**12  # values of a last stage so large that a flip in it is nothing


def case(**changes: object) -> Case:
    cell = {
        "model": "resnet18",
        "mode": "train",
        "precision": "fp32",
        "batch_size": 2,
        "image_size": 32,
        "path": "eager",
        "device": "cpu",
    }
    return Case(**{**cell, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(narrow_depth: None) -> ResNet:  # noqa: ARG001
    return reference_model(NARROW18, 0)


def program_and_state(model: ResNet, mode: Mode, precision: Precision = "fp32") -> tuple[Program, dict[str, Tensor]]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    copy = make_model(NARROW18, 0)
    return Program(PATHS_BY_NAME["eager"], copy, mode=mode, precision=precision, device="cpu"), state


def run(program: Program, state: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor | None]:
    """The trajectory, kept."""
    inputs = batches(2, 32, seed=seed, steps=STEPS)
    return {
        name: None if tensor is None else tensor.detach().clone()
        for name, tensor in trajectory.trajectory(program, state, inputs)
    }


# The errors.


def test_relative_error_is_the_norm_of_the_difference_over_that_of_the_reference() -> None:
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)
    assert relative_error(torch.zeros(5), torch.randn(5)) == 1.0


def test_relative_error_is_accumulated_in_fp64() -> None:
    reference = torch.ones(10, dtype=torch.float64)
    assert relative_error(reference + 1e-12, reference) == pytest.approx(1e-12, rel=1e-3)
    assert relative_error(torch.full((4,), 1e30), torch.full((4,), 2e30)) == pytest.approx(0.5)  # squares overflow fp32


@pytest.mark.parametrize("error", [relative_error, scale_error])
@pytest.mark.parametrize(
    ("out", "ref"),
    [
        pytest.param(None, torch.ones(3), id="missing"),
        pytest.param(torch.ones(1, 3), torch.ones(3), id="other shape, broadcastable"),
        pytest.param(torch.ones(0), torch.ones(3), id="empty"),
        pytest.param(torch.tensor([1.0, nan]), torch.ones(2), id="NaN"),
        pytest.param(torch.tensor([1.0, inf]), torch.ones(2), id="infinity"),
        pytest.param(torch.tensor([1.0, -inf, inf]), torch.ones(3), id="both infinities"),
        pytest.param(torch.ones(2), torch.tensor([1.0, nan]), id="NaN in the reference"),
        pytest.param(torch.tensor([1.0, nan]), torch.zeros(2), id="NaN where the reference is zero"),
    ],
)
def test_what_cannot_be_compared_has_an_infinite_error(error: object, out: Tensor | None, ref: Tensor) -> None:
    assert callable(error)
    assert error(out, ref) == inf


def test_zero_where_zero_is_wanted_is_right_and_noise_there_is_wrong() -> None:
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0.0
    assert scale_error(torch.zeros(3), torch.zeros(3)) == 0.0
    assert relative_error(torch.full((3,), 1e-30), torch.zeros(3)) == inf


def test_scale_error_sees_a_factor_and_not_what_is_orthogonal() -> None:
    ref = torch.tensor([3.0, 4.0])
    assert scale_error(1.05 * ref, ref) == pytest.approx(0.05)
    assert scale_error(0.9 * ref, ref) == pytest.approx(0.1)
    assert scale_error(-ref, ref) == pytest.approx(2.0)
    assert scale_error(ref + torch.tensor([-4.0, 3.0]), ref) == 0.0


def test_errors_compare_only_gradients_of_matrices_and_filters_by_scale(model: ResNet, tmp_path: Path) -> None:
    exact, state = program_and_state(model, "train", "fp64")
    file = tmp_path / "reference.pt"
    trajectory.save_reference(exact, state, batches(4, 64, seed=1, steps=1), file)
    program, _ = program_and_state(model, "train")
    found = trajectory.errors(program, state, batches(4, 64, seed=1, steps=1), file)
    scaled = {name.split(":")[1] for name in found if name.startswith("scale:")}
    assert scaled == {f"{name}@1" for name, tensor in model.named_parameters() if tensor.dim() > 1}
    assert max(found[f"scale:{name}"] for name in scaled) < 1e-3
    names = list(found)
    assert names.index("scale:conv1.weight@1") == names.index("grad:conv1.weight@1") + 1
    lower, _ = program_and_state(model, "train", "bf16")
    assert not [
        name
        for name in trajectory.errors(lower, state, batches(4, 64, seed=1, steps=1), file)
        if name.startswith("scale:")
    ]


def test_what_a_path_leaves_out_is_an_infinite_error(model: ResNet, tmp_path: Path) -> None:
    exact, state = program_and_state(model, "infer", "fp64")
    trajectory.save_reference(exact, state, batches(2, 32, seed=1, steps=2), tmp_path / "reference.pt")
    program, _ = program_and_state(model, "infer")
    found = trajectory.errors(program, state, batches(2, 32, seed=1, steps=1), tmp_path / "reference.pt")
    assert list(found) == ["output@1", "output@2"]
    assert found["output@1"] < 1e-5
    assert found["output@2"] == inf


def test_errors_are_the_same_every_time(model: ResNet, tmp_path: Path) -> None:
    exact, state = program_and_state(model, "train", "fp64")
    file = tmp_path / "reference.pt"
    trajectory.save_reference(exact, state, batches(2, 32, seed=1, steps=STEPS), file)
    first, second = (
        trajectory.errors(
            program_and_state(model, "train", "bf16")[0],
            state,
            batches(2, 32, seed=1, steps=STEPS),
            file,
        )
        for _ in range(2)
    )
    assert first == second
    assert first["output@1"] > 0


# Tolerances.


@pytest.mark.parametrize("precision", TOLERANCES)
def test_tolerance_is_a_multiple_of_eagers_error_and_not_below_its_floor(precision: str) -> None:
    limit, cell = TOLERANCES[precision], case(precision=precision)
    assert tolerance("output@1", 0.0, cell, LARGE) == limit.forward
    assert tolerance("grad:fc.weight@1", 0.0, cell, LARGE) == max(limit.backward, FLIPS["grad"] / sqrt(LARGE))
    for name in ("output@1", "loss@1", "buffer:bn1.running_mean@1", "grad:fc.weight@1", "scale:fc.weight@1"):
        assert tolerance(name, 0.2, cell, LARGE) == pytest.approx(0.2 * limit.multiplier)


@pytest.mark.parametrize(
    ("name", "flip"),
    [
        ("grad:fc.weight@1", 16.0),
        ("param:fc.weight@1", 16.0),
        ("param:fc.weight@3", 16.0),
        ("buffer:bn1.running_mean@3", 2.0),
        ("scale:fc.weight@1", 2.0),
        ("output@2", 1.0),
        ("loss@3", 1.0),
    ],
)
def test_a_flipped_relu_is_allowed_for_by_the_size_of_the_last_stage(name: str, flip: float) -> None:
    assert tolerance(name, 0.0, case(), 10_000) == pytest.approx(flip / 100)
    assert tolerance(name, 0.0, case(), 1_000_000) == pytest.approx(flip / 1000)


@pytest.mark.parametrize("name", ["output@1", "loss@1", "buffer:bn1.running_mean@1"])
def test_a_flipped_relu_is_no_excuse_before_the_first_backward(name: str) -> None:
    assert tolerance(name, 0.0, case(), 1) == TOLERANCES["fp32"].forward


def test_a_flipped_relu_is_no_excuse_in_inference() -> None:
    assert tolerance("output@3", 0.0, case(mode="infer"), 1) == TOLERANCES["fp32"].forward


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", ["grad:fc.weight@1", "scale:fc.weight@1", "param:fc.weight@3", "output@1"])
@pytest.mark.parametrize("eager_error", [0.5, 1.0, inf])
def test_a_tensor_left_out_fails_whatever_eagers_error(precision: str, name: str, eager_error: float) -> None:
    assert tolerance(name, eager_error, case(precision=precision), 1) == CEILING < 1.0


@pytest.mark.parametrize(
    ("model_name", "batch", "image"), [("resnet18", 2, 64), ("resnet50", 1, 96), ("resnet34", 4, 33)]
)
def test_last_stage_values_are_what_its_smallest_relu_puts_out(model_name: str, batch: int, image: int) -> None:
    network = make_model(model_name, 0).eval()
    here = case(model=model_name, image_size=image)
    sizes: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda *call: sizes.append(call[2].numel()))
    network(torch.randn(batch, 3, image, image))
    assert tolerances.last_stage_values(here, batch) == min(sizes)


# The verdict.

EAGER = {"output@1": 1e-6, "grad:layer1.0.conv1.weight@1": 1e-6, "grad:fc.weight@1": 1e-6}


def test_verdict_of_a_right_program_passes_and_names_the_worst() -> None:
    result = verdict([(EAGER, EAGER), ({**EAGER, "output@1": 5e-5}, EAGER)], case=case(), batch_size=2, note="why")
    assert result.passed
    assert (result.tensors, result.failed, result.failures, result.first_layer) == (6, 0, (), "")
    assert (result.batch_size, result.note) == (2, "why")
    assert (result.worst.tensor, result.worst.error) == ("output@1", 5e-5)


def test_verdict_lists_failures_in_execution_order_over_all_checks() -> None:
    first = {**EAGER, "grad:fc.weight@1": 2.0, "grad:layer1.0.conv1.weight@1": 1.0}
    second = {**EAGER, "output@1": inf}
    result = verdict([(first, EAGER), (second, EAGER)], case=case(), batch_size=2)
    assert [row.tensor for row in result.failures] == ["grad:layer1.0.conv1.weight@1", "grad:fc.weight@1", "output@1"]
    assert result.failed == 3
    assert result.worst.error == inf
    assert result.first_layer == "layer1.0.conv1"


def test_verdict_asks_where_it_began_only_if_the_tensor_does_not_tell() -> None:
    asked = []

    def locate() -> str:
        asked.append(1)
        return "layer2.0"

    def layer(name: str) -> str:
        return verdict([({name: 1.0}, {name: 0.0})], case=case(), batch_size=2, locate=locate).first_layer

    assert layer("buffer:layer3.1.bn2.running_var@1") == "layer3.1.bn2"
    assert layer("scale:layer3.1.conv2.weight@1") == "layer3.1.conv2"
    assert not asked
    assert layer("output@1") == "layer2.0"
    assert layer("loss@2") == "layer2.0"
    assert len(asked) == 2
    assert verdict([({"output@1": 1.0}, {"output@1": 0.0})], case=case(), batch_size=2).first_layer == "output@1"


def test_verdict_counts_all_failures_and_keeps_the_first() -> None:
    names = [f"grad:layer1.{i}.conv1.weight@1" for i in range(50)]
    result = verdict([(dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.0))], case=case(), batch_size=2)
    assert result.failed == 50
    assert [row.tensor for row in result.failures] == names[: len(result.failures)]
    assert 0 < len(result.failures) < 50


# The inputs.


def test_every_check_has_inputs_of_its_own_and_none_has_the_timed_ones() -> None:
    cell = case()
    seen = [batch(2, 32, 0)[0]]  # what is timed
    for seed in (0, 1):
        for check in range(reference.CHECKS):
            seen += [images for images, _ in reference.inputs(cell, Settings(seed=seed), 2, check)]
    seen.append(batch(2, 32, 1)[0])
    assert len(seen) == 2 * reference.CHECKS * Settings().parity_steps + 2
    assert len({images.numpy().tobytes() for images in seen}) == len(seen)


def test_the_inputs_of_a_check_are_the_same_every_time() -> None:
    first, second = (list(reference.inputs(case(), Settings(), 2, 1)) for _ in range(2))
    assert len(first) == Settings().parity_steps
    for (images, labels), (images_again, labels_again) in zip(first, second, strict=True):
        assert torch.equal(images, images_again)
        assert torch.equal(labels, labels_again)


# The trajectory.


def test_a_training_trajectory_has_every_tensor_in_execution_order(model: ResNet) -> None:
    program, state = program_and_state(model, "train")
    parameters = [name for name, _ in model.named_parameters()]
    buffers = [name for name, _ in model.named_buffers()]
    assert list(run(program, state)) == [
        *(f"buffer:{name}@1" for name in buffers),
        "output@1",
        "loss@1",
        *(f"grad:{name}@1" for name in reversed(parameters)),
        *(f"param:{name}@1" for name in parameters),
        "output@2",
        "loss@2",
        *(f"buffer:{name}@2" for name in buffers),
        *(f"param:{name}@2" for name in parameters),
    ]


def test_an_inference_trajectory_has_the_output_of_each_step(model: ResNet) -> None:
    program, state = program_and_state(model, "infer")
    assert list(run(program, state)) == ["output@1", "output@2"]


def test_parameters_and_buffers_come_as_what_they_moved(model: ResNet) -> None:
    program, state = program_and_state(model, "train")
    found = run(program, state)
    for name, tensor in [*program.model.named_parameters(), *program.model.named_buffers()]:
        kind = "param" if isinstance(tensor, torch.nn.Parameter) else "buffer"
        moved = found[f"{kind}:{name}@{STEPS}"]
        assert moved is not None
        assert moved.dtype == torch.float64
        assert torch.equal(moved, tensor.detach().double() - state[name].double())
        assert moved.any(), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_trajectory_does_not_depend_on_what_was_run_before(model: ResNet, precision: Precision) -> None:
    program, state = program_and_state(model, "train", precision)
    first = run(program, state)
    run(program, state, seed=2)
    images, labels = batch(2, 32, 3)
    program.step(program.place(images), labels)
    again = run(program, state)
    for name, tensor in first.items():
        assert tensor is not None
        other = again[name]
        assert other is not None
        assert torch.equal(tensor, other), name


def test_load_restores_parameters_buffers_momentum_and_loss_scale(model: ResNet) -> None:
    program, state = program_and_state(model, "train")
    program.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    program._fresh_scaler = program.scaler.state_dict()
    addresses = {name: tensor.data_ptr() for name, tensor in program.model.state_dict().items()}
    images, labels = batch(2, 32, 3)
    program.step(program.place(images), labels)
    program.scaler.update(8.0)
    assert program.optimizer is not None
    assert all(slot["momentum_buffer"].any() for slot in program.optimizer.state.values())
    program.load(state)
    assert all(not slot["momentum_buffer"].any() for slot in program.optimizer.state.values())
    assert program.scaler.get_scale() == 1024.0
    live = program.model.state_dict()
    assert live.keys() == state.keys()
    for name, tensor in live.items():
        assert torch.equal(tensor, state[name]), name
        assert tensor.data_ptr() == addresses[name]  # a captured graph keeps its addresses
