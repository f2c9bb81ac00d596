"""JUnit XML, read back as a continuous integration server would: with an XML parser of its own."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.render.files import require_writable
from bench.report import junit
from bench.types import Case, Status
from tests.support.synthetic_runs import CASE, FAILED, failed, result, run


def written(tmp_path: Path, *pending: Case) -> dict[str, ET.Element]:
    """Test cases by the path of their case: one of each kind."""
    paths = ("eager", "compile", "folded", "cuda-graph")
    eager, compiled, folded, captured = (replace(CASE, path=path, kind="parity") for path in paths)
    done = run(
        result(eager, None),
        failed(compiled, Status.PARITY_FAILED, "grad:conv1.weight@1 diverges", parity=replace(FAILED, failed=3)),
        failed(folded, Status.UNSUPPORTED, "needs <CUDA> & more"),
        failed(captured, Status.CRASHED, "SIGSEGV during build"),
        pending=pending,
    )
    file = junit.write(done, tmp_path / "new" / "parity.xml")
    suite = ET.parse(file).getroot().find("testsuite")  # noqa: S314 - our own file
    assert suite is not None
    counts = {name: suite.get(name) for name in ("name", "tests", "failures", "errors", "skipped")}
    left = len(pending)
    assert counts == {
        "name": "example", "tests": str(4 + left), "failures": "1", "errors": str(1 + left), "skipped": "1",
    }  # fmt: skip
    return {str(case.get("name")): case for case in suite.iter("testcase")}


def test_each_status_in_junits_own_words(tmp_path: Path) -> None:
    cases = written(tmp_path)
    outcomes = {name: [(child.tag, child.get("message")) for child in case] for name, case in cases.items()}
    assert outcomes == {
        "resnet18-infer-fp32-b8-i224-eager-cuda-parity": [],
        "resnet18-infer-fp32-b8-i224-compile-cuda-parity": [("failure", "grad:conv1.weight@1 diverges")],
        "resnet18-infer-fp32-b8-i224-folded-cuda-parity": [("skipped", "needs <CUDA> & more")],
        "resnet18-infer-fp32-b8-i224-cuda-graph-cuda-parity": [("error", "SIGSEGV during build")],
    }


def test_a_failure_lists_the_tensors_and_a_case_its_seconds(tmp_path: Path) -> None:
    case = written(tmp_path)["resnet18-infer-fp32-b8-i224-compile-cuda-parity"]
    assert (case.get("classname"), case.get("time")) == ("resnet18.compile", "16.5")
    assert case.findtext("failure") == "grad:conv1.weight@1: error inf, allowed 0.004, eager 0.002\nand 2 more"


def test_a_case_that_was_not_run_is_an_error(tmp_path: Path) -> None:
    left = replace(CASE, path="channels_last", kind="parity")
    case = written(tmp_path, left)[left.key]
    assert [(child.tag, child.get("type")) for child in case] == [("error", "not run")]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (partial(junit.write, run(result())), require_writable):
        with pytest.raises(ValueError, match=r"cannot write .*below"):
            write(tmp_path / "file" / "below")


def test_to_ask_whether_a_file_can_be_written_changes_nothing(tmp_path: Path) -> None:
    old = tmp_path / "old.xml"
    old.write_text("of the last run")
    for file in (old, tmp_path / "new.xml"):
        require_writable(file)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("old.xml", "of the last run")]
