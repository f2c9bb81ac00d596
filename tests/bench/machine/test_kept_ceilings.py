"""What a device was measured to reach: what it says of a precision, and how it is kept."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bench.machine import kept_ceilings
from bench.types import Ceilings, Environment, Precision

HERE = Environment(facts={"device": "a CPU", "torch": "2.14.1", "revision": "abc"})
RATES = Ceilings(copy_bytes_per_s=1e10, matmul_flops_per_s={"fp32": 149e9, "bf16": 7e9, "fp16": 300e9, "tf32": 147e9})


def fresh(age: timedelta = timedelta()) -> Ceilings:
    return replace(RATES, measured_at=(datetime.now(UTC) - age).isoformat())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("RESBENCH_CACHE_DIR", str(folder))
    return folder


def test_a_precision_slower_than_fp32_is_emulated() -> None:
    said = (
        "bf16 is emulated on this CPU: 7.00 GFLOP/s, fp32 has 149 GFLOP/s; --precisions bf16 measures it all the same"
    )
    assert kept_ceilings.why_emulated("bf16", RATES, "cpu") == said
    assert "on this GPU" in kept_ceilings.why_emulated("bf16", RATES, "cuda")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "tf32"], ids=["itself", "faster", "as fast but for noise"])
def test_others_are_not(precision: Precision) -> None:
    assert kept_ceilings.why_emulated(precision, RATES, "cpu") == ""


@pytest.mark.parametrize("known", ["bf16", "fp32"])
def test_nothing_is_said_where_a_rate_was_not_measured(known: str) -> None:
    assert kept_ceilings.why_emulated("bf16", replace(RATES, matmul_flops_per_s={known: 7e9}), "cpu") == ""


@pytest.mark.usefixtures("folder")
def test_what_is_kept_is_found_again() -> None:
    assert kept_ceilings.kept(HERE) is None
    rates = fresh()
    kept_ceilings.keep(HERE, rates)
    assert kept_ceilings.kept(HERE) == rates
    later = fresh()
    kept_ceilings.keep(HERE, later)
    assert kept_ceilings.kept(HERE) == later


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("fact", "same"), [("revision", True), ("device", False), ("torch", False), ("env:OMP_NUM_THREADS", False)]
)
def test_it_is_kept_by_all_that_decides_the_rates(fact: str, same: bool) -> None:
    rates = fresh()
    kept_ceilings.keep(HERE, rates)
    assert kept_ceilings.kept(Environment(facts={**HERE.facts, fact: "another"})) == (rates if same else None)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("age", [kept_ceilings.KEPT - timedelta(hours=1), kept_ceilings.KEPT + timedelta(hours=1)])
def test_what_is_old_is_measured_anew(age: timedelta) -> None:
    kept_ceilings.keep(HERE, fresh(age))
    assert (kept_ceilings.kept(HERE) is None) == (age > kept_ceilings.KEPT)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"copy_bytes_per_s": "fast"}', b"\xff"])
def test_a_spoilt_file_is_measured_anew(folder: Path, content: bytes) -> None:
    kept_ceilings.keep(HERE, fresh())
    (file,) = folder.iterdir()
    file.write_bytes(content)
    assert kept_ceilings.kept(HERE) is None


def test_without_a_place_nothing_is_kept_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("RESBENCH_CACHE_DIR", str(blocked))
    kept_ceilings.keep(HERE, fresh())
    assert kept_ceilings.kept(HERE) is None
    assert blocked.read_text() == "in the way"

    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RESBENCH_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    kept_ceilings.keep(HERE, fresh())
    assert kept_ceilings.kept(HERE) is None


def test_the_user_s_cache_directory_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESBENCH_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept_ceilings.keep(HERE, fresh())
    assert [file.parent for file in tmp_path.rglob("*.json")] == [tmp_path / "resbench"]
