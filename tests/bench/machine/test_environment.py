import os
import shutil
from pathlib import Path as FilePath
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from bench.machine import environment, requirements
from bench.machine.environment import collect
from bench.machine.requirements import why_unsupported, why_untimed
from bench.types import Case, Environment
from resnet.paths import PATHS, PATHS_BY_NAME, Path
from tests.support.repository import ROOT


def case(**changes: Any) -> Case:  # noqa: ANN401
    cell = {
        "model": "resnet18",
        "mode": "infer",
        "precision": "fp32",
        "batch_size": 2,
        "image_size": 64,
        "path": "eager",
        "device": "cpu",
    }
    return Case(**{**cell, **changes})


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(requirements, "cpp_compiler", lambda: "g++")


def test_collect_is_the_same_twice_and_names_this_process() -> None:
    first, second = collect("cpu"), collect("cpu")
    assert first.facts == second.facts
    assert first.hash == second.hash
    assert first.facts["torch"] == torch.__version__
    assert first.facts["cores"] == str(len(os.sched_getaffinity(0)))
    assert first.facts["device_kind"] == "cpu"
    assert all(isinstance(value, str) and value for value in first.facts.values())


def test_weights_of_the_same_name_and_another_content_are_another_environment(tmp_path: FilePath) -> None:
    file = tmp_path / "weights.pt"
    hashes = {collect("cpu", weights="DEFAULT").hash, collect("cpu", weights=str(tmp_path / "none.pt")).hash}
    assert hashes == {collect("cpu").hash}
    for content in (b"one", b"two"):
        file.write_bytes(content)
        found = collect("cpu", weights=str(file))
        assert str(tmp_path) not in "\n".join(found.facts.values())
        hashes.add(found.hash)
    assert len(hashes) == 3


def test_collect_tells_no_directory_host_or_user() -> None:
    told = "\n".join(collect("cpu").facts.values())
    assert str(FilePath.home()) not in told
    assert str(ROOT) not in told


def test_another_setting_is_another_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = collect("cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    after = collect("cpu")
    assert after.facts["env:OMP_NUM_THREADS"] == "1"
    assert after.hash != before.hash


def test_variables_keep_settings_and_drop_paths() -> None:
    variables = {
        "OMP_NUM_THREADS": "8",
        "CUDA_VISIBLE_DEVICES": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCH_HOME": "/home/someone/.cache",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/torchinductor_someone",  # noqa: S108
        "LD_PRELOAD": "/usr/lib/libjemalloc.so.2:/home/someone/libx.so",
        "HOME": "/home/someone",
        "HOSTNAME": "machine",
    }
    assert environment._variables(variables) == {
        "env:OMP_NUM_THREADS": "8",
        "env:CUDA_VISIBLE_DEVICES": "1",
        "env:PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "env:LD_PRELOAD": "libjemalloc.so.2 libx.so",
    }


def test_cuda_without_cuda_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cpu"):
        collect("cuda")


class NoNvml(Exception):  # noqa: N818
    pass


def fake_nvml(**functions: object) -> ModuleType:
    nvml = ModuleType("fake_nvml")
    vars(nvml).update(NVMLError=NoNvml, nvmlInit=lambda: None, nvmlShutdown=lambda: None)
    vars(nvml).update(nvmlDeviceGetHandleByUUID=lambda _uuid: "handle", **functions)
    return nvml


def _not_supported(*_: object) -> None:
    raise NoNvml


@pytest.mark.usefixtures("cuda")
def test_collect_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(
        name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, total_memory=150 * 2**30, uuid="1-2"
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    nvml = fake_nvml(
        nvmlSystemGetDriverVersion=lambda: "575.57",
        nvmlDeviceGetPowerManagementLimit=lambda _: 700_000,
        nvmlDeviceGetPersistenceMode=lambda _: 1,
        nvmlDeviceGetCurrentEccMode=_not_supported,
    )
    facts = collect("cuda", nvml).facts
    assert (facts["device"], facts["compute_capability"], facts["gpu_memory"]) == ("NVIDIA H200", "9.0", "150.0 GiB")
    assert (facts["driver"], facts["power_limit"], facts["persistence_mode"]) == ("575.57", "700 W", "on")
    assert facts["ecc"] == "unknown"


def test_no_driver_leaves_its_facts_unknown() -> None:
    facts = environment._driver(fake_nvml(nvmlInit=_not_supported), "GPU-1")
    assert set(facts.values()) == {"unknown"}


def test_no_git_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    facts = collect("cpu").facts
    assert facts["revision"].startswith("source-")
    assert facts["cpp_compiler"] == "none"


def test_the_code_is_a_fact_and_its_files_are_none() -> None:
    found = collect("cpu")
    assert found.sources["bench/machine/environment.py"]
    assert found.hash == Environment(facts=found.facts).hash


def test_cpp_compiler_is_the_one_inductor_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: FilePath) -> None:
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert environment.cpp_compiler() is None
    monkeypatch.setenv("CXX", "my-c++ -m64")
    assert environment.cpp_compiler() == str(compiler)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_on_a_gpu_a_path_lacks_only_the_modes_it_has_not(path: Path, mode: str) -> None:
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        reason = why_unsupported(case(device="cuda", mode=mode, precision=precision, path=path.name), path)
        assert (reason is None) == (mode in path.modes)


@pytest.mark.parametrize(
    ("changes", "path", "part"),
    [
        ({"device": "cuda"}, "eager", "no CUDA device"),
        ({}, "cuda-graph", "path cuda-graph needs a CUDA device"),
        ({"mode": "train"}, "folded", "no train mode, only infer"),
        ({"mode": "train"}, "compile-max-autotune", "Inductor searches only kernels with frozen weights"),
        ({"precision": "tf32"}, "eager", "tf32 needs a CUDA device"),
        ({"precision": "fp16"}, "eager", "fp16 on CPU needs"),
        ({"world_size": 2}, "eager", "use world size 1"),
        ({"mode": "train", "batch_size": 3, "image_size": 32}, "eager", "this case has 3: use larger batches"),
        ({}, "compile", "install g++"),
    ],
)
def test_what_a_bare_cpu_machine_lacks(
    changes: dict[str, Any], path: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(requirements, "cpp_compiler", lambda: None)
    monkeypatch.setattr(requirements, "fp16_runs_on_cpu", lambda: False)
    reason = why_unsupported(case(path=path, **changes), PATHS_BY_NAME[path])
    assert reason is not None
    assert part in reason
    assert "\n" not in reason


@pytest.mark.parametrize(("mode", "batch_size", "image_size"), [("train", 4, 32), ("train", 1, 33), ("infer", 1, 32)])
def test_four_values_a_channel_are_enough(mode: str, batch_size: int, image_size: int) -> None:
    few = case(mode=mode, batch_size=batch_size, image_size=image_size)
    assert why_unsupported(few, PATHS_BY_NAME["eager"]) is None


def test_what_a_cpu_machine_with_a_compiler_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "cpp_compiler", lambda: "g++")
    monkeypatch.setattr(requirements, "fp16_runs_on_cpu", lambda: True)
    runs = {
        (path.name, mode)
        for path in PATHS
        for mode in ("train", "infer")
        if why_unsupported(case(mode=mode, precision="fp16", path=path.name), path) is None
    }
    both = {(name, mode) for name in ("eager", "channels_last", "compile") for mode in ("train", "infer")}
    timed = both | {("compile-max-autotune", "infer"), ("folded", "infer")}
    fused = ("triton", "triton-compile", "triton-cuda-graph", "gram", "gram-cuda-graph")
    checked = {(name, mode) for name in fused for mode in ("train", "infer")}
    checked |= {(name, "train") for name in ("triton-rebuild", "gram-rebuild")} | {("folded-triton", "infer")}
    assert runs == timed | checked
    for name, mode in runs:
        assert bool(why_untimed(case(mode=mode, path=name), PATHS_BY_NAME[name])) == ((name, mode) in checked)
        assert not why_untimed(case(mode=mode, path=name, device="cuda"), PATHS_BY_NAME[name])


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_turing_has_neither_tf32_nor_bf16(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    reason = why_unsupported(case(device="cuda", precision=precision), PATHS_BY_NAME["eager"])
    assert reason == f"{precision} needs a CUDA device of compute capability 8.0 or later, and this one has 7.5"
    assert why_unsupported(case(device="cuda", precision="fp16"), PATHS_BY_NAME["eager"]) is None


@pytest.mark.usefixtures("cuda")
def test_compile_on_cuda_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda _: None)
    assert "install triton" in str(why_unsupported(case(device="cuda", path="compile"), PATHS_BY_NAME["compile"]))
    assert why_unsupported(case(device="cuda"), PATHS_BY_NAME["eager"]) is None


def test_fp16_runs_where_onednn_has_kernels_for_it() -> None:
    assert requirements.fp16_runs_on_cpu() == torch.ops.mkldnn._is_mkldnn_fp16_supported()
