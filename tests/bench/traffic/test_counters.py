"""What a GPU's counters see, by a made-up `ncu`: sums, reasons, the command; and the step that it watches."""

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from click.testing import CliRunner

from bench.cli import main
from bench.traffic import counters, profiled, worker
from bench.traffic.counters import NO_RIGHTS, NO_TOOL, parse
from bench.traffic.schemes import DECLARED, all_schemes
from bench.traffic.types import Request, Seen
from bench.types import Ceilings, Device, Mode
from bench.workers.parent import Terms
from kernels.launch.runtime import recorded
from tests.support.narrow_networks import NARROW17
from tests.support.traffic_cases import MODEL, few_bottlenecks, request  # noqa: F401 - the second is a fixture

pytestmark = pytest.mark.usefixtures("flags_restored", "few_bottlenecks")

HEADER = '"ID","Process ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum"'
UNITS = '"","","","byte","byte"'
PRINTED = f"""\
==PROF== Connected to process 7 (/usr/bin/python3)
==PROF== Profiling "_gram": 0%....50%....100% - 1 pass
{HEADER}
{UNITS}
"0","7","_gram","1,048,576","4096"
"1","7","void cutlass::Kernel<(int)3>(Params)","100","23.0"
"""


def test_bytes_are_summed_over_kernels() -> None:
    assert parse("gram", PRINTED) == Seen(scheme="gram", read_bytes=1048676, written_bytes=4119)
    found = parse("gram", PRINTED)
    assert isinstance(found, Seen)
    assert found.bytes == 1048676 + 4119


@pytest.mark.parametrize(("printed", "reason"), [
    (PRINTED.replace(UNITS, '"","","","Kbyte","byte"'), "dram__bytes_read.sum is in 'Kbyte', not in 'byte'"),
    (PRINTED.replace("dram__bytes_write.sum", "dram__sectors.sum"), "dram__bytes_write.sum is in ''"),
    (PRINTED.replace('"4096"', '"n/a"'), "cannot understand what ncu printed: could not convert"),
    (f"{HEADER}\n{UNITS}", "ncu saw no kernel"),
    ("", "cannot understand what ncu printed"),
])  # fmt: skip
def test_what_cannot_be_understood_is_a_reason(printed: str, reason: str) -> None:
    found = parse("gram", printed)
    assert isinstance(found, str)
    assert reason in found


# --- a made-up tool ---------------------------------------------------------------------------------------------------


class Ncu:
    """A program of that name, first on PATH, that notes how it is called."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._notes = folder, folder / "calls"

    def does(self, what: str) -> None:
        """`what`: Python, in which `scheme` is what it is to profile."""
        program = self._folder / "ncu"
        program.write_text(
            f"#!{sys.executable}\nimport json, sys, time\n"
            f"open({str(self._notes)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
            f"scheme = json.loads(sys.argv[-1])['schemes'][0]\n{what}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self._notes.read_text().splitlines()] if self._notes.exists() else []


@pytest.fixture
def ncu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ncu:
    """And workers are calls."""

    def call(_: Terms, entry: Callable[..., object], *arguments: object) -> object:
        if str(entry) == "bench.machine.doctor:has_cuda":
            return True
        if str(entry) == "bench.machine.ceilings:measure_ceilings":
            return Ceilings(copy_bytes_per_s=4e12, matmul_flops_per_s={"bf16": 8e14})
        return entry(*arguments)

    monkeypatch.setattr(Terms, "call", call)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    made = Ncu(tmp_path)
    made.does(f"print({PRINTED!r})")
    return made


STEP = ("traffic", MODEL, "--batch", "8", "--image-size", "64")


def told(*arguments: str) -> dict[str, Any]:
    ended = CliRunner().invoke(main, [*STEP, "--json", *arguments])
    assert ended.exit_code == 0, ended.output
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_the_command_shows_what_was_seen_beside_what_is_counted(ncu: Ncu) -> None:
    rows = {row["scheme"]: row for row in told("--paths", "compile,gram,cudnn-fused")["rows"] if not row["part"]}
    assert {scheme: row["seen_bytes"] for scheme, row in rows.items()} == {
        "inductor": 1052795, "gram": 1052795, "cudnn-fused": None,
    }  # fmt: skip
    asked = [msgspec.json.decode(call[-1], type=Request) for call in ncu.calls]
    assert asked == [request("inductor"), request("gram")], "PyTorch does not call cuDNN's fused graphs"
    for call in ncu.calls:
        assert call[-4:-1] == [sys.executable, "-m", "bench.traffic.profiled"]
        assert call[call.index("--metrics") + 1] == "dram__bytes_read.sum,dram__bytes_write.sum"
        assert call[call.index("--profile-from-start") + 1] == "off"
    shown = CliRunner().invoke(main, [*STEP, "--paths", "gram,cudnn-fused"]).output
    assert "counters MB/image" in shown
    assert "0.132" in shown, "1,052,795 bytes of eight images"


def test_a_page_says_where_the_counters_are_from(ncu: Ncu, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    told("--paths", "gram", "--markdown", str(page))
    assert "*counters*: the bytes that passed between this GPU's memory and its caches" in page.read_text()
    assert "nothing is measured" not in page.read_text()
    assert ncu.calls
    told("--paths", "gram", "--markdown", str(page), "--no-counters")
    assert "this page was written without them" in page.read_text()


@pytest.mark.parametrize("arguments", [("--no-counters",), ("--device", "h200"), ("--device", "cpu")])
def test_nothing_is_run_where_nobody_asks(ncu: Ncu, arguments: tuple[str, ...]) -> None:
    told("--paths", "gram", *arguments)
    assert ncu.calls == []


@pytest.mark.parametrize(("does", "reason"), [
    ("print('==ERROR== ERR_NVGPUCTRPERM - The user does not have permission'); sys.exit(1)", NO_RIGHTS),
    (("sys.stderr.write('torch.OutOfMemoryError: out of it\\n'); print('==ERROR== The application returned an error'); "
     "sys.exit(1)"), "torch.OutOfMemoryError: out of it"),
    ("print('==ERROR== Failed to find metric dram__bytes_read.sum'); sys.exit(9)", "Failed to find metric"),
    ("sys.exit(3)", "ncu ended with exit code 3"),
    ("print('nothing of use')", "cannot understand what ncu printed"),
])  # fmt: skip
def test_what_goes_wrong_is_a_line_and_no_failure(ncu: Ncu, does: str, reason: str) -> None:
    ncu.does(does)
    ended = CliRunner().invoke(main, [*STEP, "--paths", "gram,triton"])
    assert ended.exit_code == 0
    assert f"no counters{'' if reason == NO_RIGHTS else ' of gram, triton'}: " in " ".join(ended.output.split())
    assert reason in " ".join(ended.output.split())
    assert "counters MB/image" not in ended.output
    assert len(ncu.calls) == (1 if reason == NO_RIGHTS else 2), "rights are the same for all"


def test_one_that_fails_costs_no_other(ncu: Ncu) -> None:
    ncu.does(f"sys.exit(3) if scheme == 'triton' else print({PRINTED!r})")
    rows = {row["scheme"]: row["seen_bytes"] for row in told("--paths", "triton,gram")["rows"] if not row["part"]}
    assert rows == {"triton": None, "gram": 1052795}


def test_without_the_tool_the_reason_is_told(ncu: Ncu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    ended = CliRunner().invoke(main, [*STEP, "--paths", "gram"])
    assert NO_TOOL in " ".join(ended.output.split())
    assert ncu.calls == []


def test_a_tool_that_hangs_is_given_up_with_all_that_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a worker of its own, as in use."""
    slow = Ncu(tmp_path)
    slow.does("time.sleep(600)")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(counters, "TIMEOUT_S", 3.0)
    seen, unseen = counters.read(request("gram"), lambda _: None)
    assert seen == ()
    (reason,) = unseen
    assert "no counters of gram: " in reason
    assert "within 3 s" in reason


# --- the step that is watched -----------------------------------------------------------------------------------------

DEVICE: Device = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_every_scheme_has_a_network_but_those_that_pytorch_cannot_call(mode: Mode) -> None:
    assert set(all_schemes(mode)) - set(profiled.FACTORIES) <= {"cudnn-fused"}
    assert set(profiled.FACTORIES) - set(DECLARED) <= {*all_schemes("train"), *all_schemes("infer"), *_PATHS}


_PATHS = {"channels_last", "cuda-graph", "triton-cuda-graph", "gram-cuda-graph"}  # like others, and counted with them


@pytest.mark.usefixtures("narrow_depth")
@pytest.mark.parametrize(("scheme", "mode"), [
    *((scheme, "train") for scheme in ("eager", "triton", "gram", "inductor")),
    *(pytest.param(scheme, "train", marks=pytest.mark.exhaustive) for scheme in ("triton-rebuild", "gram-rebuild")),
    *((scheme, "infer") for scheme in ("eager", "gram", "folded", "folded-triton")),
])  # fmt: skip
def test_the_step_computes_what_eager_does(scheme: str, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def compile_(network: object, **_: object) -> object:
        """What tests of paths do for real."""
        compiled.append(network)
        return network

    monkeypatch.setattr(torch, "compile", compile_)
    asked = (
        request(name, model=NARROW17, mode=mode, precision="fp32", batch_size=4, image_size=64)
        for name in (scheme, "eager")
    )
    found, wanted = (profiled.prepare(one, DEVICE) for one in asked)
    for mine, its in zip(found(), wanted(), strict=True):
        assert float((mine - its).norm() / its.norm()) < (1e-2 if mode == "train" else 1e-4)
    assert len(compiled) == (scheme == "inductor")


@pytest.mark.skipif(DEVICE == "cuda", reason="there it chooses between ways by measuring them")
def test_the_step_of_products_has_products() -> None:
    step = profiled.prepare(request("folded-triton", mode="infer", batch_size=2, image_size=32), DEVICE)
    with recorded() as calls:
        step()
    assert {call.kernel.__name__ for call in calls} == {"_block_end", "_block_chain"}


def test_the_step_is_what_is_counted() -> None:
    """The same launches, kernel by kernel."""
    of = request("gram", batch_size=2, image_size=32)
    counted = [op.name for found in worker.count(of) for op in found.operations]
    step = profiled.prepare(of, DEVICE)
    with recorded("sm_90") as calls:
        step()
    launched = [call.kernel.__name__.removeprefix("_") for call in calls]
    assert launched
    assert launched == [name for name in counted if name in set(launched)]
