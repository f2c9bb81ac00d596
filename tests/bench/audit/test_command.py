"""The audit: what it finds in kernels that are planted for it, and the command."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.audit import command as audit_command
from bench.audit import report
from bench.audit import worker as bench_audit
from bench.cli import main
from bench.kernels import types
from bench.workers.errors import WorkerCrashedError
from bench.workers.parent import Terms
from kernels.audit import audit as audit_kernels
from kernels.audit.audit import FORMS
from kernels.audit.compilation import DTYPES, Compilation, Figures, occupancy
from kernels.launch.runtime import ARCHITECTURES
from kernels.table import BLOCKS_BY_NAME
from tests.support import planted_kernels
from tests.support.processes import PATIENCE_S
from tests.support.repository import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


# --- what is found ----------------------------------------------------------------------------------------------------

Verdict = tuple[dict[str, Any], list[str]]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """What compiles, in one process: each takes as long to import torch as to compile all that these tests do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        for name in ("TRITON_INTERPRET", "TRITON_CACHE_DIR"):
            patch.setenv(name, "")  # so that what is set is undone
        with audit_kernels.compilers() as started:
            yield started


@pytest.fixture(scope="module")
def verdicts(pool: ProcessPoolExecutor) -> dict[str, Verdict]:
    """Of the planted kernels, really compiled."""
    return dict(zip(planted_kernels.PLANTED, pool.map(planted_kernels.verdict, planted_kernels.PLANTED), strict=True))


def test_nothing_is_wrong_with_a_good_kernel(verdicts: dict[str, Verdict]) -> None:
    figures, faults = verdicts["good"]
    assert faults == []
    assert (figures["load_bits"], figures["store_bits"], figures["main_bits"]) == (128, 128, 128)
    assert (figures["spill_bytes"], figures["stack_bytes"], figures["dynamic_shared_bytes"]) == (0, 0, 0)
    assert 8 <= figures["registers"] <= 64
    assert (figures["resident_warps"], figures["of_warps"], figures["limited_by"]) == (64, 64, "threads")


def test_a_spill_is_a_fault(verdicts: dict[str, Verdict]) -> None:
    figures, (fault,) = verdicts["spilling"]
    assert figures["spill_bytes"] >= figures["stack_bytes"] > 0
    assert fault.startswith(f"spills {figures['spill_bytes']} bytes of a thread's registers to local memory")
    assert "smaller tile on sm_80 (TILES_ON in kernels/launch/passes.py, or kernels/products/tiles.py)" in fault


@pytest.mark.parametrize("name", ["narrow", "narrow once"])
def test_a_narrow_access_beside_wide_ones_is_a_fault(verdicts: dict[str, Verdict], name: str) -> None:
    figures, (fault,) = verdicts[name]
    assert (figures["load_bits"], figures["store_bits"], figures["main_bits"]) == (128, 128, 32)
    assert fault.startswith(
        "accesses z_ptr 32 bits at a time where 128 are possible: tell the compiler what is contiguous"
    )


def test_an_activation_without_access_is_a_fault(verdicts: dict[str, Verdict]) -> None:
    figures, (fault,) = verdicts["forgetful"]
    assert figures["main_bits"] == 0
    assert fault.startswith("has no access to z_ptr")


def test_too_much_shared_memory_is_a_fault(verdicts: dict[str, Verdict]) -> None:
    figures, faults = verdicts["greedy"]
    needed, limit = figures["dynamic_shared_bytes"], ARCHITECTURES["sm_80"].shared_bytes
    assert needed > limit
    message = f"needs {needed} bytes of shared memory, but a program may use {limit} at most: give its pass"
    assert any(fault.startswith(message) for fault in faults)
    assert (figures["resident_warps"], figures["limited_by"]) == (0, "shared memory")


def test_a_kernel_that_does_not_compile_is_a_fault(verdicts: dict[str, Verdict]) -> None:
    figures, (fault,) = verdicts["broken"]
    assert figures == {}
    assert fault.startswith("does not compile: ")
    assert "a planted mistake" in fault
    assert "\n" not in fault


@pytest.mark.parametrize(("arch", "registers", "num_warps", "shared_bytes", "warps", "limited_by"), [
    # CUDA C++ Best Practices Guide, "Calculating Occupancy": 37 registers, 128 threads: 75 %; 320 threads: 63 %
    ("sm_80", 37, 4, 0, 48, "registers"),
    ("sm_80", 37, 10, 0, 40, "registers"),
    ("sm_90", 32, 16, 0, 64, "threads"),
    ("sm_90", 128, 16, 0, 16, "registers"),
    ("sm_90", 255, 8, 0, 8, "registers"),
    ("sm_90", 32, 1, 0, 32, "programs"),
    ("sm_80", 32, 8, 163 * 1024, 8, "shared memory"),
    ("sm_80", 32, 8, 81 * 1024, 16, "shared memory"),  # 164 KiB, of which each program has one reserved
    ("sm_80", 32, 8, 81 * 1024 + 1, 8, "shared memory"),
])  # fmt: skip
def test_occupancy(
    arch: str, registers: int, num_warps: int, shared_bytes: int, warps: int, limited_by: str
) -> None:  # fmt: skip
    compilation = Compilation(
        kernel="", arch=arch, signature=(), constants=(), divisible=(), num_warps=num_warps, num_stages=None
    )  # fmt: skip
    figures = Figures(
        registers=registers, spill_bytes=0, stack_bytes=0, static_shared_bytes=0, dynamic_shared_bytes=shared_bytes,
        load_bits=0, store_bits=0, narrowest_bits={},
    )  # fmt: skip
    assert occupancy(compilation, figures) == (warps, 64, limited_by)


# --- the command ------------------------------------------------------------------------------------------------------

ROW = {
    "arch": "sm_90", "kernel": "_apply", "forms": ["bn", "bn+relu"], "modes": ["training"], "dtype": "bf16",
    "layout": "channels_last", "shapes": ["256x64x56x56"], "wide": True, "block_rows": 256, "block_channels": 64,
    "num_warps": 16, "registers": 70, "spill_bytes": 0, "stack_bytes": 0, "static_shared_bytes": 16,
    "dynamic_shared_bytes": 4096, "load_bits": 128, "store_bits": 128, "main_bits": 128, "resident_warps": 16,
    "of_warps": 64, "limited_by": "registers", "faults": [],
}  # fmt: skip
FAULT = "_apply of bn (bf16, channels_last, training, 256x64x56x56) on sm_90 spills 8 bytes"


def test_the_command_offers_what_there_is() -> None:
    assert audit_command.FORMS == FORMS
    assert tuple(types.BLOCK_FORMS) == tuple(BLOCKS_BY_NAME)
    assert set(types.DTYPES) == set(DTYPES)
    assert (*audit_command.ARCHS, "interpreter") == tuple(ARCHITECTURES)


def test_the_table_shows_the_worst_of_each_form() -> None:
    narrow = ROW | {"forms": ["bn"], "main_bits": 16, "wide": False, "registers": 90, "limited_by": "threads"}
    worse = ROW | {"forms": ["bn"], "resident_warps": 8, "spill_bytes": 24, "faults": [FAULT]}
    broken = {"arch": "sm_80", "kernel": "_pool", "forms": ["stem"], "faults": ["does not compile"]}
    bn, relu, stem = report.summary([ROW, narrow, worse, broken])
    assert bn == {
        "arch": "sm_90", "kernel": "_apply", "form": "bn", "faults": 1, "compiled": 3, "registers": 90, "spilled B": 24,
        "stack B": 0, "shared B": 4112, "load bits": 128, "store bits": 128, "main bits": 128,
        "occupancy": "8 of 64 warps (registers)",
    }  # fmt: skip
    assert (relu["form"], relu["compiled"], relu["registers"], relu["faults"]) == ("bn+relu", 1, 70, 0)
    assert (stem["arch"], stem["kernel"], stem["compiled"], stem["faults"]) == ("sm_80", "_pool", None, 1)


@pytest.mark.parametrize("arguments", [(), ("-q",), ("--json",)])
def test_a_fault_fails_the_command_by_name(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.setattr(Terms, "call", lambda *_: [ROW, ROW | {"faults": [FAULT]}])
    ended = CliRunner().invoke(main, ["audit", *arguments])
    assert ended.exit_code == 1
    assert ended.stderr == f"{FAULT}\n"
    if "--json" in arguments:
        told = json.loads(ended.stdout)
        assert told == {"rows": [ROW, ROW | {"faults": [FAULT]}], "faults": [FAULT], "files": [], "exit_code": 1}
    else:
        assert ("2 compilations, 1 faults" in ended.stdout) == (not arguments)


def test_a_dead_compiler_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> None:
        raise WorkerCrashedError("SIGKILL during 3/40")

    monkeypatch.setattr(Terms, "call", die)
    ended = CliRunner().invoke(main, ["audit"])
    assert (ended.exit_code, ended.stdout) == (3, "")
    assert ended.stderr.startswith("Error: the audit has no answer: SIGKILL during 3/40; try fewer at a time")


@pytest.mark.parametrize(("arguments", "words"), [
    (("--arch", "sm_91"), ("--arch sm_91", "sm_80, sm_90, sm_100")),
    (("--dtypes", "bf16,fp64"), ("--dtypes fp64", "fp32, bf16, fp16")),
    (("--forms", "relu"), ("--forms relu", "bn+relu")),
    (("--shape", "64,56,56"), ("64,56,56", "N,C,H,W")),
    (("--shape", "1,64,1,1"), ("1,64,1,1", "more than one value per channel")),
    (("--csv", "/proc/file.csv"), ("/proc/file.csv", "name a file that can be written")),
])  # fmt: skip
def test_bad_usage_compiles_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(Terms, "call")
    ended = CliRunner().invoke(main, ["audit", *arguments])
    assert (ended.exit_code, ended.stdout) == (2, "")
    for word in words:
        assert word in ended.stderr
    assert list(tmp_path.iterdir()) == []


OF_NORM = {"_partial_statistics", "_apply", "_reduce", "_gradient"}
OF_BLOCK = {
    "_conv_statistics", "_prepare", "_gram", "_covariance", "_varied", "_filter_statistics", "_block_end",
    "_filter_gradient", "_parameter_gradients", "_inner_filters", "_inner_gradient", "_input_gradient",
}  # fmt: skip


PARTS = {  # of what the whole audit compiles
    "running statistics": {"_update_running"},
    "bn,stem,bottleneck,running statistics": OF_NORM | {"_pool", "_update_running"} | OF_BLOCK,
}


def arguments_of(forms: str) -> list[str]:
    selection = ["--arch", "sm_100", "--dtypes", "fp16", "--forms", forms, "--shape", "256,64,56,56"]
    return ["audit", *selection, "--json", "--csv", "a.csv"]


def check(forms: str, stdout: str, folder: Path) -> None:
    told = json.loads(stdout)
    rows = told["rows"]
    assert (told["faults"], told["files"], told["exit_code"]) == ([], ["a.csv"], 0)
    assert {row["kernel"] for row in rows} == PARTS[forms]
    assert {row["arch"] for row in rows} == {"sm_100"}
    whole = forms != "running statistics"
    assert {row["layout"] for row in rows} == ({"channels_last", "NCHW, 16", ""} if whole else {""})
    assert {mode for row in rows for mode in row["modes"]} == ({"training", "evaluation"} if whole else {"training"})
    assert {row["main_bits"] for row in rows if row["wide"]} == ({128} if whole else set())
    assert all(0 < row["registers"] <= 255 and row["resident_warps"] > 0 for row in rows)
    with (folder / "a.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["kernel"] for row in written] == [row["kernel"] for row in rows]
    assert [int(row["registers"]) for row in written] == [row["registers"] for row in rows]


def test_a_kernel_from_the_command_to_the_compiler_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: ProcessPoolExecutor
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Terms, "call", lambda _, _entry, *arguments: bench_audit.examine(*arguments))
    monkeypatch.setattr(audit_kernels, "compilers", lambda: nullcontext(pool))
    ended = CliRunner().invoke(main, arguments_of("running statistics"))
    assert (ended.exit_code, ended.stderr) == (0, ""), ended.stdout
    check("running statistics", ended.stdout, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("forms", PARTS)
def test_some_kernels_from_end_to_end(tmp_path: Path, forms: str) -> None:
    """In processes of its own."""
    command = [sys.executable, "-m", "bench", *arguments_of(forms)]
    ended = subprocess.run(  # noqa: S603
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    check(forms, ended.stdout, tmp_path)
