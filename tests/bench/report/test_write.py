"""The files of a run directory."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.synthetic_runs import (
    CASE,
    CEILINGS,
    ENVIRONMENT,
    result,
    run,
    sweep,
    written,
)


def test_write_returns_the_files_it_wrote(tmp_path: Path) -> None:
    files = written(tmp_path, sweep(models=("resnet18",), batches=(8,), paths=("eager", "compile")))
    pictures = {f"plots/{name}.{kind}" for name in ("throughput", "memory", "pareto") for kind in ("svg", "png")}
    assert {str(file.relative_to(tmp_path)) for file in files} == {
        "results.csv",
        "report.md",
        "environment.json",
        *pictures,
    }
    found = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {str(file.relative_to(tmp_path)) for file in files}  # no temporary file stays
    links = re.findall(r"!\[.*?\]\((.*?)\)", (tmp_path / "report.md").read_text())
    assert sorted(links) == ["plots/memory.svg", "plots/pareto.svg", "plots/throughput.svg"]


def test_writing_again_replaces_and_removes_stale_pictures(tmp_path: Path) -> None:
    written(tmp_path, run(result()))
    (tmp_path / "results.jsonl").write_text("the journal")
    written(tmp_path, run(pending=(CASE,)))
    assert not list((tmp_path / "plots").iterdir())
    assert "No case has a result yet" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "results.jsonl").read_text() == "the journal"


def test_environment_json(tmp_path: Path) -> None:
    written(tmp_path, run(result()))
    content = json.loads((tmp_path / "environment.json").read_text())
    assert content["hash"] == ENVIRONMENT.hash
    assert content["facts"] == ENVIRONMENT.facts
    assert "changed_sources" not in content
    assert content["ceilings"]["copy_bytes_per_s"] == CEILINGS.copy_bytes_per_s
    assert content["settings"]["confidence"] == 0.005


def test_sources_that_are_not_as_committed_are_named(tmp_path: Path) -> None:
    changed = replace(ENVIRONMENT, changed_sources=("bench/measure/timing.py", "kernels/launch/tiles.py"))
    written(tmp_path, run(result(), environment=changed))
    assert json.loads((tmp_path / "environment.json").read_text())["changed_sources"] == list(changed.changed_sources)
    assert "| changed sources | bench/measure/timing.py and kernels/launch/tiles.py |" in re.sub(
        " +", " ", (tmp_path / "report.md").read_text()
    )


def test_a_directory_that_cannot_be_written_is_a_plain_error(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("not a directory")
    with pytest.raises(ValueError, match="cannot write the report"):
        written(target, run(result()))
