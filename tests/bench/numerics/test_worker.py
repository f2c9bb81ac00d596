"""How exact the block is that never writes its widest tensors: hard operands, what handles them, and the page."""

import csv
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from math import exp, fsum, inf, log
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from bench.cli import main
from bench.kernels.types import Dtype
from bench.numerics import block_errors, worker
from bench.numerics.adversaries import ADVERSARIES, Adversary
from bench.numerics.block_errors import Watched, compare, error
from bench.numerics.guards import GUARDS
from bench.numerics.report import page
from bench.numerics.types import TOLERANCES, Compared, Comparison, Measured
from bench.types import Device
from bench.workers.parent import Terms
from kernels.bottleneck.forms import BlockOperands
from kernels.gram import covariance
from kernels.products.plans import multiplies
from kernels.table import BLOCKS_BY_NAME
from resnet.precision import DTYPES
from tests.support.exhaustive import exhaustive
from tests.support.guards import REMOVABLE
from tests.support.repository import ROOT

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of NaN and infinity in the interpreter
]

DOCS = ROOT / "docs"
PRECISIONS = tuple(TOLERANCES)
HALF: tuple[Dtype, ...] = ("bf16", "fp16")
precisions = pytest.mark.parametrize("precision", ["fp16", *exhaustive("fp32", "bf16")])
DEVICE: Device = "cuda" if torch.cuda.is_available() else "cpu"
BY_NAME = {case.name: case for case in ADVERSARIES}


@cache
def measured(name: str, precision: Dtype, without: str = "") -> Comparison:
    """The comparison of a case, by kernels as they are or without a guard."""
    with REMOVABLE[without].removed() if without else nullcontext():
        return worker.measure_case(BY_NAME[name], precision, DEVICE).comparison


def beyond(name: str, precision: Dtype, without: str = "") -> dict[str, float]:
    """The tensors of a case that are further from fp64 than they may be, and how many times."""
    found = {of.tensor: of.severity(precision) for of in measured(name, precision, without).tensors}
    return {tensor: severity for tensor, severity in found.items() if not severity <= 1.0}


# Hard operands.


@precisions
@pytest.mark.parametrize("case", [case for case in ADVERSARIES if not case.limit], ids=lambda case: case.name)
def test_hard_operands_cost_the_block_no_more_than_eager(case: Adversary, precision: Dtype) -> None:
    """Within TOLERANCES on every tensor, which includes that it is finite where eager is."""
    assert beyond(case.name, precision) == {}


@precisions
@pytest.mark.parametrize("case", [case for case in ADVERSARIES if case.limit], ids=lambda case: case.name)
def test_beyond_its_limits_the_result_is_right_and_all_is_finite(case: Adversary, precision: Dtype) -> None:
    of = {compared.tensor: compared for compared in measured(case.name, precision).tensors}
    assert of["out"].severity(precision) <= 1.0
    assert all(compared.error < inf for compared in of.values() if compared.eager_error < inf)


WITHIN = ("digits of the centre",)  # without it errors are several times as large, though not beyond what passes
# What each guard is for: a case, a precision, a tensor that it is good for, and how many times worse it is without.
NEEDED = (
    ("centre", "y2 with a mean of 100 deviations", "fp32", "var of bn3", 100),
    ("centre", "y2 with a mean of 1000 deviations", "fp32", "out", 100),
    ("centre", "y2 with a mean of 10000 deviations", "fp32", "d filters3", 100),
    ("centre", "x with a mean of 100 deviations, projected", "fp32", "out", 10),
    ("digits of the centre", "nothing special, projected", "bf16", "d filters of the projection", 3),
    ("digits of the centre", "nothing special, projected", "fp16", "mean of bn3", 3),
    ("least variance", "filters orthogonal to all variation", "fp32", "out", inf),
    ("least variance", "filters orthogonal to all variation", "fp16", "out", inf),
    ("unscale", "huge gamma of filters that hardly vary", "fp16", "d x", inf),
    ("unscale", "x near the largest fp16, projected", "fp16", "d x", 100),
    ("mean of the gradient", "gradient of one sign", "bf16", "d bias2", 3),
    ("mean of the gradient", "gradient of one sign", "fp16", "d bias2", 3),
    ("diagonal of H", "gradient of one sign", "bf16", "d weight2", 3),
    ("diagonal of H", "gradient of one sign", "fp16", "d weight2", 2),
)


@pytest.mark.parametrize(("guard", "case", "precision", "tensor", "times"), NEEDED)
def test_without_its_guard_a_case_fails(guard: str, case: str, precision: Dtype, tensor: str, times: float) -> None:
    assert guard in BY_NAME[case].guards
    found, without = (
        {of.tensor: of.error for of in measured(case, precision, removed).tensors}[tensor] for removed in ("", guard)
    )
    assert found < inf
    assert without >= times * found
    assert tensor in beyond(case, precision, guard) or guard in WITHIN


def test_every_guard_is_needed_by_a_case_and_put_back_after_it() -> None:
    assert {guard for guard, *_ in NEEDED} == set(GUARDS) == set(REMOVABLE)
    assert {guard for case in ADVERSARIES for guard in case.guards} == set(GUARDS)
    kernel = covariance._prepare
    with REMOVABLE["centre"].removed():
        assert covariance._prepare is not kernel
    assert covariance._prepare is kernel


# Ordinary operands at 16 bits: no worse than eager over the block.


@pytest.mark.parametrize("precision", ["fp16", *exhaustive("bf16")])
@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("bottleneck", (2, 128, 14, 14)),
        ("bottleneck+projection", (2, 64, 14, 14)),
        ("bottleneck+downsampling", (2, 64, 28, 28)),
    ],
)
def test_over_a_block_the_scheme_is_no_worse_than_eager(
    form: str, shape: tuple[int, int, int, int], precision: Dtype
) -> None:
    """On the whole, and on no tensor by more than chance (some have 32 values), of a gradient of mean zero."""
    found = compare(BLOCKS_BY_NAME[form], BLOCKS_BY_NAME[form].make(shape, DTYPES[precision], DEVICE), mean=0.0)
    assert found.ratio <= 1.0
    assert {of.tensor: of.ratio for of in found.tensors if of.ratio > 1.5} == {}


# How it is measured.


def test_relus_are_seen_and_told_what_to_let_pass() -> None:
    x = torch.tensor([-1.0, 2.0, 0.0, 3.0], requires_grad=True)
    with Watched() as seen:
        torch.nn.functional.relu(x)
    assert [passed.tolist() for passed in seen.passed] == [[False, True, False, True]]
    told = torch.tensor([True, True, False, False])
    with Watched((told,)):
        y = torch.nn.functional.relu(x)
    assert y.tolist() == [-1.0, 2.0, 0.0, 0.0]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_statistics_are_those_that_batch_norm_normalises_by() -> None:
    x = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1
    with Watched() as seen:
        torch.nn.functional.batch_norm(x, None, None, training=True)
    assert torch.allclose(seen.statistics[0], torch.stack([x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)]))


def test_errors() -> None:
    ref = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert error(torch.tensor([3.0, 4.5]), ref) == pytest.approx(0.1)
    assert error(torch.tensor([3.0, 4.0]), 0 * ref) == pytest.approx(5.0)
    assert error(torch.tensor([3.0, torch.nan]), ref) == inf
    assert error(torch.tensor([3.0, torch.inf]), ref) == inf


def test_a_wrong_block_is_as_wrong_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tensor against the right one: a factor shows as itself, whatever the sides of the ReLUs."""
    form = BLOCKS_BY_NAME["bottleneck"]
    operands = form.make((2, 64, 8, 8), torch.float32, DEVICE)
    right = block_errors.scheme

    def wrong(operands: BlockOperands, dout: Tensor) -> block_errors.BlockStep:
        run = right(operands, dout)
        return replace(run, tensors={name: 1.25 * tensor for name, tensor in run.tensors.items()})

    monkeypatch.setattr(block_errors, "scheme", wrong)
    for of in compare(form, operands).tensors:
        assert of.error == pytest.approx(0.25, rel=1e-3), of.tensor
        assert of.eager_error < 1e-4


def test_sides_are_counted() -> None:
    form = BLOCKS_BY_NAME["bottleneck"]
    found = compare(form, form.make((2, 64, 8, 8), torch.bfloat16, DEVICE))
    assert 0 < found.sides < 0.01
    assert 0 < found.eager_sides < 0.01


@pytest.mark.skipif(not multiplies(torch.float64), reason="kernels multiply no fp64 here")
def test_nothing_but_rounding_is_counted() -> None:
    form = BLOCKS_BY_NAME["bottleneck"]
    exact = compare(form, form.make((2, 64, 8, 8), torch.float64, DEVICE))
    assert exact.sides == exact.eager_sides == 0
    assert all(of.error < 1e-9 for of in exact.tensors)


# The page.


def made_up() -> Iterator[Measured]:
    """Everything that is measured, with errors of nobody."""
    named = BLOCKS_BY_NAME["bottleneck+projection"].make((1, 8, 2, 2), torch.float32, "meta").named()
    names = ("out", "mean of bn3", "var of bn3", *(f"d {name}" for name in named))
    tensors = tuple(Compared(tensor=name, error=1e-3, eager_error=2e-3) for name in names)
    comparison = Comparison(tensors=tensors, sides=0.0, eager_sides=0.0)
    for name in worker.blocks():
        for precision in PRECISIONS:
            for gradient in worker.MEANS:
                yield Measured(name=name, precision=precision, gradient=gradient, comparison=comparison)
    for case in ADVERSARIES:
        for precision in PRECISIONS:
            yield Measured(name=case.name, precision=precision, comparison=comparison)


def skeleton(text: str) -> list[str]:
    """The lines of a page without what was measured: the summary, and the columns of precisions in tables."""
    kept: list[str] = []
    width = 0  # of the table
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            width = 0
            kept += [] if line.startswith(tuple(f"- {precision}: " for precision in PRECISIONS)) else [line]
        elif not width:
            width = len(cells) - (len(PRECISIONS) if cells[-1] == PRECISIONS[-1] else 0)
            kept.append(" | ".join(cells))
        elif set(line) - set("|:-"):
            kept.append(" | ".join(cells[:width]))
    return kept


def committed() -> dict[tuple[str, Dtype, str], list[Compared]]:
    """The tensors in docs/numerics.csv of each name, precision and gradient."""
    found = defaultdict(list)
    with (DOCS / "numerics.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            precision = next(of for of in PRECISIONS if of == row["precision"])
            errors = {name: float(row[name]) for name in ("error", "eager_error")}
            key = (row["name"], precision, row["gradient"])
            found[key].append(Compared(tensor=row["tensor"], **errors))
    return found


def test_the_page_is_what_the_tables_list() -> None:
    text = (DOCS / "numerics.md").read_text(encoding="utf-8")
    device = "cpu" if "(cpu, " in text else "cuda"
    made = page(list(made_up()), worker.cases(), device, rows=worker.BATCH_SIZE * worker.LINES**2)
    assert skeleton(text) == skeleton(made)
    listed = {one[0] for one in committed()}
    assert listed == {*worker.blocks(), *BY_NAME}
    assert all(f"| {name} " in text for name in listed)


def test_what_the_page_claims_is_in_its_numbers() -> None:
    """At 16 bits no worse than eager over any block of the network, and no hard case beyond what passes."""
    found = committed()
    assert len(found) == len(list(made_up()))
    for (name, precision, gradient), tensors in found.items():
        if gradient and precision in HALF:
            assert exp(fsum(log(of.ratio) for of in tensors) / len(tensors)) <= 1.0, (name, precision, gradient)
        if not (name in BY_NAME and BY_NAME[name].limit):
            assert {of.tensor for of in tensors if of.severity(precision) > 1.0} == set(), (name, precision, gradient)


def test_a_small_run_writes_the_page_and_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(BY_NAME["nothing special, projected"], shape=(2, 16, 4, 4))
    monkeypatch.setattr(worker, "blocks", lambda: {"small block": ("bottleneck", (2, 16, 4, 4))})
    monkeypatch.setattr(worker, "ADVERSARIES", (case,))
    out = tmp_path / "new" / "page.md"
    monkeypatch.setattr(Terms, "call", lambda _, _entry, *arguments: worker.write(*arguments))
    ended = CliRunner().invoke(main, ["numerics", "--out", str(out), "--device", DEVICE])
    assert ended.exit_code == 0, ended.output
    text = out.read_text(encoding="utf-8")
    assert "| small block " in text
    assert "| nothing special, projected " in text
    with out.with_suffix(".csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["tensor"] for row in rows} >= {"out", "d x", "var of bn3", "d weight of the projection"}
    operands = case.operands(torch.bfloat16, DEVICE)
    of = {of.tensor: of for of in compare(BLOCKS_BY_NAME["bottleneck+projection"], operands).tensors}["d x"]
    wanted = {"precision": "bf16", "gradient": "", "tensor": "d x"}
    (row,) = (row for row in rows if wanted.items() <= row.items())
    assert float(row["error"]) == pytest.approx(of.error, rel=1e-3)


def test_bad_use_is_told() -> None:
    ended = CliRunner().invoke(main, ["numerics"])
    assert ended.exit_code == 2
    assert "Missing option '--out'" in ended.output
    assert "Examples:" in CliRunner().invoke(main, ["numerics", "--help"]).output
