import subprocess
import sys
from copy import deepcopy
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from bench.machine.requirements import fp16_runs_on_cpu, why_unsupported
from bench.types import Case
from resnet.paths import PATHS, PATHS_BY_NAME, Need, Path
from resnet.precision import Mode, Precision, set_product_precision
from resnet.program import LEARNING_RATE, LOSS_SCALE, MOMENTUM, WEIGHT_DECAY, Program
from tests.support.processes import PATIENCE_S
from tests.support.shallow_programs import CLASSES, EAGER, make_batch, make_model, make_program, relative, run

COMPILED = [path for path in PATHS if path.compile_mode is not None]
# Compilation takes longest: of these the default suite has the other mode, or the other network.
COMPILED_AS_OTHERS = (("compile", "train"), ("triton-compile", "infer"), ("compile-max-autotune", "infer"))

pytestmark = pytest.mark.usefixtures("narrow_depth", "quick_choice", "flags_restored")


# Every path.


def runnable() -> list[Any]:
    """Every path and mode, those that cannot run here skipped with the reason."""
    cells = []
    for path in PATHS:
        for mode in path.modes:
            case = Case(
                model="resnet18",
                mode=mode,
                precision="fp32",
                batch_size=2,
                image_size=64,
                path=path.name,
                device="cpu",
            )
            reason = why_unsupported(case, path)
            marks = [pytest.mark.skip(reason=reason)] if reason else []
            if (path.name, mode) in COMPILED_AS_OTHERS:
                marks.append(pytest.mark.exhaustive)
            cells.append(pytest.param(path, mode, id=f"{path.name}-{mode}", marks=marks))
    return cells


@pytest.mark.parametrize(("path", "mode"), runnable())
def test_a_step_of_every_path_computes_what_the_plain_model_does(path: Path, mode: Mode) -> None:
    program = make_program(path, mode)
    before = deepcopy(program.model.state_dict())
    plain = make_model().train(mode == "train")
    images, labels = make_batch()
    wanted = plain(images)
    logits, loss = run(program)
    assert logits.shape == (2, CLASSES)
    assert logits.dtype == torch.float32
    assert relative(logits, wanted) < 1e-5
    after = program.model.state_dict()
    if mode == "infer":
        assert loss is None
        assert program.optimizer is None
        assert not logits.requires_grad
        assert all(torch.equal(after[name], before[name]) for name in before)
        return
    assert loss is not None
    assert loss.item() == pytest.approx(F.cross_entropy(wanted, labels).item(), rel=1e-5)
    for name, value in before.items():
        assert not torch.equal(after[name], value), name
    for name, buffer in plain.named_buffers():
        assert relative(after[name], buffer) < 1e-5, name
    F.cross_entropy(wanted, labels).backward()  # type: ignore[no-untyped-call]
    found = program.gradients()
    for name, parameter in plain.named_parameters():
        gradient = found[name]
        assert gradient is not None
        assert parameter.grad is not None
        assert relative(gradient, parameter.grad) < 1e-2, name  # a ReLU may flip
        assert relative(after[name] - before[name], -LEARNING_RATE * (gradient + WEIGHT_DECAY * before[name])) < 1e-2


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_model_and_images_have_the_layout_of_the_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    program = make_program(path, path.modes[0])
    images = program.place(make_batch()[0])
    weight = program.model.get_parameter("conv1.weight")
    for tensor in (images, weight):
        assert tensor.is_contiguous(memory_format=program.layout)
        assert tensor.is_contiguous() != path.channels_last


def test_training_steps_are_those_of_sgd_written_by_hand() -> None:
    program = make_program(EAGER, "train")
    model = make_model().train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True
    )
    for seed in range(3):
        images, labels = make_batch(seed)
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found = run(program, seed)
        assert torch.equal(found[0], logits)
        assert found[1] is not None
        assert torch.equal(found[1], loss)
        for name, gradient in program.gradients().items():
            assert gradient is not None
            wanted = model.get_parameter(name).grad
            assert wanted is not None
            assert torch.equal(gradient, wanted), name
    after = program.model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(after[name], value), name


def test_inference_is_the_plain_model_in_evaluation_mode() -> None:
    program = make_program(EAGER, "infer")
    with torch.inference_mode():
        assert torch.equal(run(program)[0], make_model().eval()(make_batch()[0]))


def test_forward_is_the_loss_or_the_logits() -> None:
    images, labels = make_batch()
    cells: tuple[tuple[Mode, int], ...] = (("train", 1), ("infer", 0))
    for mode, number in cells:
        out = make_program(EAGER, mode).forward(images, labels)
        wanted = run(make_program(EAGER, mode))[number]
        assert wanted is not None
        assert torch.equal(out, wanted)


def test_a_gradient_that_is_not_there_is_none() -> None:
    model = make_model()
    model.conv1.weight.requires_grad_(False)
    program = Program(EAGER, model, mode="train", precision="fp32", device="cpu")
    run(program)
    found = program.gradients()
    assert [name for name, gradient in found.items() if gradient is None] == ["conv1.weight"]
    assert list(found) == [name for name, _ in model.named_parameters()]


# Precision.


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp64", torch.float64), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
@pytest.mark.parametrize(("name", "mode"), [("eager", "train"), ("channels_last", "infer"), ("folded", "infer")])
def test_logits_have_the_dtype_of_the_precision(
    name: str, mode: Mode, precision: Precision, dtype: torch.dtype
) -> None:
    program = make_program(PATHS_BY_NAME[name], mode, precision)
    logits, loss = run(program)
    assert logits.dtype == dtype
    reference, _ = run(make_program(EAGER, mode, "fp64"))
    unit = {"fp64": 1e-12, "fp32": 1e-5, "bf16": 5e-2}[precision]
    assert relative(logits, reference) < unit
    if precision == "bf16":
        assert relative(logits, reference) > 1e-4  # it was bf16 that computed
    if mode == "train":
        assert loss is not None
        assert loss.dtype == (torch.float64 if precision == "fp64" else torch.float32)


@pytest.mark.parametrize("precision", get_args(Precision))
def test_parameters_are_fp32_but_for_the_reference(precision: Precision) -> None:
    program = make_program(EAGER, "train", precision)
    wanted = torch.float64 if precision == "fp64" else torch.float32
    assert {parameter.dtype for parameter in program.model.parameters()} == {wanted}
    assert program.place(make_batch()[0]).dtype == wanted


@pytest.mark.parametrize("precision", get_args(Precision))
def test_products_run_in_tf32_if_and_only_if_the_precision_says_so(precision: Precision) -> None:
    for other in ("fp32", "tf32"):  # whatever was set before
        set_product_precision(other)
        make_program(EAGER, "infer", precision)
        assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")
        assert torch.backends.cudnn.allow_tf32 is (precision == "tf32")
        assert torch.backends.cudnn.benchmark is True


def test_losses_are_scaled_in_fp16_training_alone() -> None:
    for precision in get_args(Precision):
        for mode in get_args(Mode):
            scaler = make_program(EAGER, mode, precision).scaler
            assert scaler.is_enabled() is (precision == "fp16" and mode == "train")
            assert scaler.get_scale() == (LOSS_SCALE if scaler.is_enabled() else 1.0)


def test_the_loss_scale_is_in_no_result() -> None:
    plain, scaled = make_program(EAGER, "train"), make_program(EAGER, "train")
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=LOSS_SCALE)
    inside: list[Tensor] = []
    scaled.model.get_parameter("fc.weight").register_hook(inside.append)  # type: ignore[no-untyped-call]
    wanted_loss, loss = run(plain)[1], run(scaled)[1]
    assert loss is not None
    assert wanted_loss is not None
    assert torch.equal(loss, wanted_loss)
    found = scaled.gradients()
    for name, gradient in plain.gradients().items():
        unscaled = found[name]
        assert gradient is not None
        assert unscaled is not None
        assert relative(unscaled, gradient) < 1e-6, name
        assert relative(scaled.model.get_parameter(name), plain.model.get_parameter(name)) < 1e-7, name
    wanted = plain.gradients()["fc.weight"]
    assert wanted is not None
    assert relative(inside[0], LOSS_SCALE * wanted) < 1e-6  # but it was in the backward pass


@pytest.mark.skipif(not fp16_runs_on_cpu(), reason="this CPU lacks fp16 kernels: AVX512-FP16 or AMX-FP16 instructions")
def test_fp16_trains() -> None:
    program = make_program(EAGER, "train", "fp16")
    logits, _ = run(program)
    assert logits.dtype == torch.float16
    reference = make_program(EAGER, "train", "fp64")
    assert relative(logits, run(reference)[0]) < 1e-2
    gradient, wanted = program.gradients()["fc.weight"], reference.gradients()["fc.weight"]
    assert gradient is not None
    assert wanted is not None
    assert relative(gradient, wanted) < 1e-1


# Compilation: what is asked of torch.compile.


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.name)
@pytest.mark.parametrize("mode", get_args(Mode))
def test_compile_is_asked_for_the_mode_of_the_path(path: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[nn.Module, dict[str, Any]]] = []

    def compile_(model: nn.Module, **arguments: Any) -> nn.Module:  # noqa: ANN401
        calls.append((model, arguments))
        return model

    monkeypatch.setattr(torch, "compile", compile_)
    program = make_program(path, mode)
    assert path.compile_mode is not None
    [(model, arguments)] = calls
    options = arguments.pop("options")
    assert model is program.model
    assert arguments == {"dynamic": False}
    assert options.pop("freezing", False) is (path.freeze and mode == "infer")
    assert options == torch._inductor.list_mode_options(path.compile_mode)


def test_only_the_rows_that_say_so_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    for path in PATHS:
        if path not in COMPILED:
            program = make_program(path, path.modes[0])
            assert program.network is program.model


# The table.


def test_paths_have_unique_names_and_summaries() -> None:
    assert list(PATHS_BY_NAME.values()) == list(PATHS)
    assert len(PATHS_BY_NAME) == len(PATHS)
    assert len({path.summary for path in PATHS}) == len(PATHS)
    assert all(path.name and path.summary for path in PATHS)
    assert PATHS[0] == EAGER  # the baseline comes first


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_row_says_what_it_needs(path: Path) -> None:
    assert set(path.needs) <= set(get_args(Need))
    assert path.modes
    assert ("c++ compiler" in path.needs) == (path.compile_mode is not None)
    if path.cuda_graph or path.compile_mode == "reduce-overhead":
        assert ("cuda for timing" if path.fuse or path.products else "cuda") in path.needs
    if path.fold:
        assert path.modes == ("infer",)
    assert bool(path.cpu_reason) == (path.cpu_modes is not None)
    assert set(path.cpu_modes or ()) <= set(path.modes)


def test_the_table_is_read_without_torch() -> None:
    code = "import sys, resnet.paths; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=PATIENCE_S).returncode == 0  # noqa: S603
