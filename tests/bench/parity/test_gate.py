"""The gate tests itself: programs with one fault each, and parity must reject every one and name the tensor.

Everything runs through what a worker uses: a reference from `reference.prepare`, a call before the check,
`parity.errors` and `parity.verdict`. The network is narrow, and faults are as large as makes rounding, which differs
between machines, decide nothing. That its last stage has an eighth of the values that parity takes it to have makes
parity here the stricter.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

from bench.machine.environment import cpp_compiler
from bench.measure.inputs import make_batch, make_model
from bench.parity import reference, trajectory
from bench.parity import verdict as parity
from bench.types import Case, Ceilings, Mode, ParityResult, Precision, Reference, Settings
from resnet.paths import PATHS_BY_NAME
from resnet.program import Program
from tests.support.faults import FAULTS, PRECISIONS, Fault, Optimizer, set_norms, with_optimizer
from tests.support.narrow_networks import NARROW18
from tests.support.other_programs import other_program

MODEL, BATCH, SIDE = NARROW18, 4, 64
SETTINGS = Settings(parity_steps=1)
RATES = Ceilings(copy_bytes_per_s=1e11, matmul_flops_per_s={"fp64": 1e14})  # never a smaller batch

pytestmark = pytest.mark.usefixtures("narrow_depth", "quick_choice")


# Faults of the step: what it returns, what it trains on, how it updates.


# Faults of the model.


def case_of(path: str, mode: Mode, precision: Precision) -> Case:
    return Case(model=MODEL, mode=mode, precision=precision, batch_size=BATCH, image_size=SIDE, path=path, device="cpu")


def judge(
    program: Program, case: Case, against: Reference, checks: Sequence[int] = (0,), steps: int = 1
) -> ParityResult:
    """As a worker does it: a step on the inputs that are timed, then the checks, of so many steps each."""
    settings = replace(SETTINGS, parity_steps=steps)
    images, labels = make_batch(case, SETTINGS.seed)
    program.step(program.place(images), labels)
    state = make_model(MODEL, SETTINGS.seed).state_dict()
    found = [
        trajectory.errors(program, state, reference.inputs(case, settings, BATCH, check), Path(against.files[check]))
        for check in checks
    ]
    eager = [against.eager_errors[check] for check in checks]
    return parity.verdict(list(zip(found, eager, strict=True)), case=case, batch_size=BATCH)


References = Callable[..., Reference]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory, narrow_depth: None) -> References:  # noqa: ARG001
    """Of each mode and precision, and steps of a check, made when first asked for."""

    @cache
    def get(mode: Mode, precision: Precision, steps: int = 1) -> Reference:
        settings = replace(SETTINGS, parity_steps=steps)
        return reference.prepare(case_of("eager", mode, precision), settings, RATES, scratch[steps])

    scratch = {steps: tmp_path_factory.mktemp("references") for steps in {fault.steps for fault in FAULTS}}
    return get


FAULTY = [
    pytest.param(fault, mode, precision, id=f"{fault.name}-{mode}-{precision}")
    for fault in FAULTS
    for mode in fault.first
    for precision in fault.precisions
]


@pytest.mark.parametrize(("fault", "mode", "precision"), FAULTY)
def test_a_fault_is_rejected_and_its_first_tensor_named(
    fault: Fault, mode: Mode, precision: Precision, references: References
) -> None:
    case = case_of("eager", mode, precision)
    program = other_program(case, SETTINGS, fault.program, fault.edit)
    verdict = judge(program, case, references(mode, precision, fault.steps), steps=fault.steps)
    if precision == "bf16" and fault.unseen_bf16:
        assert verdict.passed, f"can be seen after all; the table says: {fault.unseen_bf16}"
        return
    assert not verdict.passed
    first = verdict.failures[0].tensor
    assert fnmatchcase(first, fault.first_tensor(mode, precision)), first
    assert verdict.first_layer == (first.partition(":")[2].rpartition(".")[0] or first)


def test_a_fault_that_begins_after_the_first_check_is_rejected(references: References) -> None:
    case = case_of("eager", "train", "fp32")
    program = other_program(case, SETTINGS)
    assert judge(program, case, references("train", "fp32")).passed
    set_norms(program.model, eps=1e-3)  # type: ignore[arg-type]
    assert not judge(program, case, references("train", "fp32"), checks=(1,)).passed


HONEST = [
    pytest.param(path, mode, precision, id=f"{path}-{mode}-{precision}")
    for path in ("eager", "channels_last", "folded")
    for mode in PATHS_BY_NAME[path].modes
    for precision in PRECISIONS
]


@pytest.mark.parametrize(("path", "mode", "precision"), HONEST)
def test_a_path_without_a_fault_passes(path: str, mode: Mode, precision: Precision, references: References) -> None:
    case = case_of(path, mode, precision)
    assert judge(other_program(case, SETTINGS), case, references(mode, precision), checks=(0, 1)).failures == ()


@pytest.mark.exhaustive
@pytest.mark.skipif(cpp_compiler() is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_path_passes(references: References) -> None:
    case = case_of("compile", "infer", "fp32")
    assert judge(other_program(case, SETTINGS), case, references("infer", "fp32"), checks=(0, 1)).failures == ()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_optimizer_that_faults_are_put_into_has_none(precision: Precision, references: References) -> None:
    case = case_of("eager", "train", precision)
    program = other_program(case, SETTINGS, with_optimizer(Optimizer))
    assert judge(program, case, references("train", precision), checks=(0, 1)).failures == ()
