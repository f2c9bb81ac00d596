"""Traffic: names, floors, the command and its page."""

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cli import main
from bench.traffic import report, worker
from bench.traffic.machines import MACHINES
from bench.traffic.schemes import DECLARED, all_schemes, scheme_of
from bench.traffic.types import Counted, Operation, Traffic
from bench.types import Ceilings
from bench.workers.parent import Terms
from resnet.paths import PATHS
from tests.support.repository import ROOT
from tests.support.traffic_cases import MODEL, few_bottlenecks, request  # noqa: F401 - the second is a fixture

PAGE = ROOT / "docs" / "traffic.md"

pytestmark = pytest.mark.usefixtures("flags_restored", "few_bottlenecks")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are calls."""
    monkeypatch.setattr(Terms, "call", lambda _, entry, *arguments: entry(*arguments))


def test_a_floor_is_the_longer_of_two_times_operation_by_operation() -> None:
    ceilings = Ceilings(copy_bytes_per_s=10.0, matmul_flops_per_s={"bf16": 100.0, "fp32": 50.0})
    moves = Operation(part="a", direction="forward", name="copy", bytes=50)
    computes = Operation(part="b", direction="forward", name="product", bytes=10, flops=400)
    step_ = Traffic(scheme="x", operations=(moves, computes))
    assert (moves.floor_s(ceilings, "bf16"), computes.floor_s(ceilings, "bf16")) == (5.0, 4.0)
    assert step_.floor_s(ceilings, "bf16") == 9.0
    assert step_.floor_s(ceilings, "fp32") == 13.0


def test_machines_are_told_apart() -> None:
    assert list(MACHINES) == ["a100", "h100", "h200", "b200"]
    for name, machine in MACHINES.items():
        rates = machine.ceilings.matmul_flops_per_s
        assert machine.name == name
        assert "data sheet" in machine.source
        assert rates["bf16"] == rates["fp16"] > rates["tf32"] > rates["fp32"] > 1e13
        assert 1e12 < machine.ceilings.copy_bytes_per_s < 1e13


def test_every_path_has_a_scheme() -> None:
    named = {path.name: scheme_of(path.name, path.modes[0]) for path in PATHS}
    assert named["cuda-graph"] == named["channels_last"] == "eager"
    assert named["compile-max-autotune"] == "inductor"
    assert named["triton-compile"] == named["triton-cuda-graph"] == "triton"
    assert named["gram-cuda-graph"] == "gram"
    assert {*all_schemes("train"), *all_schemes("infer")} == {*named.values(), *DECLARED}
    assert all(scheme.summary and scheme.reason for scheme in DECLARED.values())


@pytest.mark.parametrize(("arguments", "words"), [
    (("resnet51",), ("unknown model 'resnet51'", "resnet50")),
    ((MODEL, "--paths", "fastest"), ("unknown path 'fastest'", "gram", "cudnn-fused")),
    ((MODEL, "--paths", "folded"), ("folded has no mode train", "infer")),
    ((MODEL, "--mode", "infer", "--paths", "gram-rebuild"), ("gram-rebuild has no mode infer",)),
    ((MODEL, "--batch", "0"), ("--batch must be at least 1",)),
    ((MODEL, "--image-size", "0"), ("--image-size must be at least 1",)),
    ((MODEL, "--batch", "1", "--image-size", "32"), ("BatchNorm cannot train", "--batch")),
    ((MODEL, "--device", "v100"), ("v100", "a100", "cpu")),
    ((MODEL, "--precision", "fp64"), ("fp64", "bf16")),
    ((MODEL, "--markdown", "/proc/page.md"), ("cannot write /proc/page.md",)),
])  # fmt: skip
def test_bad_usage(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    monkeypatch.delattr(Terms, "call")
    ended = CliRunner().invoke(main, ["traffic", *arguments])
    assert (ended.exit_code, ended.stdout) == (2, "")
    for word in words:
        assert word in ended.stderr


def test_a_device_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"bench.machine.doctor:has_cuda": False, "bench.machine.ceilings:measure_ceilings": Ceilings(
        copy_bytes_per_s=1.0, matmul_flops_per_s={"fp32": 1.0})}  # fmt: skip
    monkeypatch.setattr(Terms, "call", lambda _, entry, *__: answers[str(entry)])
    for arguments, message in (
        (["--device", "cuda"], "no CUDA device"),
        (["--precision", "fp16"], "does not run fp16"),
    ):
        ended = CliRunner().invoke(main, ["traffic", MODEL, *arguments])
        assert ended.exit_code == 2
        assert message in ended.stderr


SMALL_STEP = ("traffic", MODEL, "--batch", "8", "--image-size", "64", "--device", "h200")


@pytest.mark.usefixtures("in_process")
def test_json_has_raw_values_that_add_up() -> None:
    ended = CliRunner().invoke(main, [*SMALL_STEP, "--paths", "compile,gram-cuda-graph", "--layers", "--json"])
    assert ended.exit_code == 0, ended.output
    told = json.loads(ended.stdout)
    rows = told["rows"]
    assert (told["files"], told["exit_code"]) == ([], 0)
    wanted = {of.scheme: of for of in worker.count(request("inductor", "gram"))}
    assert list(dict.fromkeys(row["scheme"] for row in rows)) == sorted(wanted, key=lambda of: -wanted[of].bytes)
    for scheme, found in wanted.items():
        total, *others = (row for row in rows if row["scheme"] == scheme)
        parts = [row for row in others if "operation" not in row]
        single = [row for row in others if "operation" in row]
        assert total["part"] == ""
        assert (total["bytes"], total["flops"]) == (found.bytes, found.flops)
        assert total["bytes_per_image"] == found.bytes / 8
        assert total["floor_s"] == pytest.approx(found.floor_s(MACHINES["h200"].ceilings, "bf16"))
        for name in ("bytes", "flops", "floor_s"):
            assert sum(row[name] for row in parts) == pytest.approx(total[name])
            assert sum(row[name] for row in single) == pytest.approx(total[name])


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("arguments", [(), ("--layers",), ("-q",)])
def test_tables(arguments: tuple[str, ...]) -> None:
    ended = CliRunner().invoke(main, [*SMALL_STEP, "--paths", "eager,gram", *arguments])
    assert ended.exit_code == 0, ended.output
    if "-q" in arguments:
        assert ended.stdout == ""
        return
    assert "img/s at most" in ended.stdout
    assert "layer4.0" in ended.stdout
    assert "H200 SXM" in ended.stdout
    assert ("inner_gradient" in ended.stdout) == ("--layers" in arguments)


def test_totals_are_those_of_the_traffic() -> None:
    ceilings = Ceilings(copy_bytes_per_s=1e9, matmul_flops_per_s={"bf16": 1e12})
    wide, narrow = (
        Traffic(scheme=name, operations=(Operation(part="stem", direction="forward", name="a", bytes=moved, flops=8),))
        for name, moved in (("eager", 32_000_000), ("gram", 16_000_000))
    )
    counted = Counted(request=request("eager", "gram"), traffic=(wide, narrow), device="cpu", ceilings=ceilings)
    first, second = report.totals(counted)
    assert (first["MB/image"], first["over the least"], first["floor ms/step"], first["img/s at most"]) == (
        "4.00", "2.00x", "32.0", "250",
    )  # fmt: skip
    assert second["over the least"] == "1.00x"
    assert report.by_part(counted) == [{"part": "stem", "eager": "4.00", "gram": "2.00"}]
    assert report.rates(counted).startswith("cpu, measured here: 1.00 GB/s and 1.00 TFLOP/s in bf16")


@pytest.mark.usefixtures("in_process")
def test_the_page_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written again by the command of its first line."""
    text = PAGE.read_text(encoding="utf-8")
    _, command, _ = text.partition("\n")[0].split("`")
    program, *arguments = shlex.split(command)
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(main, arguments)
    assert (program, ended.exit_code) == ("resbench", 0), ended.output
    assert (tmp_path / "docs" / "traffic.md").read_text(encoding="utf-8") == text, f"write it again: {command}"


def test_a_real_worker_counts() -> None:
    ended = CliRunner().invoke(
        main, ["traffic", "resnet18", "--mode", "infer", "--paths", "triton", "--device", "a100"]
    )
    assert ended.exit_code == 0, ended.output
    assert "triton" in ended.stdout
