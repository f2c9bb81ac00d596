"""The journal under what happens to journals: torn lines, second writers, kill -9, corruption, other environments."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from itertools import count
from math import inf, nan
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.record.journal import JOURNAL_NAME, Journal, read
from bench.record.lines import SCHEMA
from bench.types import (
    Ceilings,
    Environment,
    ParityResult,
    Plan,
    Result,
    Session,
    Status,
    TensorError,
)
from bench.workers.places import TEMPORARY
from tests.support.exhaustive import exhaustive
from tests.support.journals import CASES, CEILINGS, ELSEWHERE, HERE, PLAN, result, write
from tests.support.repository import ROOT


@pytest.fixture
def held(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the journal of tmp_path/run, with one result in it."""
    write(tmp_path / "run", HERE)
    code = (
        "import sys; from pathlib import Path\n"
        "from bench.record.journal import Journal; from bench.types import Result\n"
        "journal = Journal.resume(Path(sys.argv[1]))\n"
        "case, where = journal.plan.cases[0], sys.argv[2]\n"
        "journal.append(Result(case=case, status='valid', environment_hash=where))\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), HERE.hash]
    root = ROOT
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:  # noqa: S603
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


# --- round trips ---


SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    float: st.floats(allow_nan=False),
    int: st.integers(-(2**63), 2**63 - 1),
    str: st.text(max_size=8) | st.sampled_from(["Infinity", "-Infinity", "null", "1", "true", "\n"]),
}


def filled(hint: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401 a type
    """Values of a type hint; of a dataclass, with every field drawn, whether it has a default or not."""
    origin = get_origin(hint)
    if origin in (tuple, dict, UnionType):
        items = [filled(item) for item in get_args(hint) if item is not Ellipsis]
        if origin is UnionType:
            return st.one_of(*items)
        return st.dictionaries(*items, max_size=3) if origin is dict else st.lists(*items, max_size=3).map(tuple)
    if isinstance(hint, type) and is_dataclass(hint):
        return st.builds(hint, **{name: filled(field) for name, field in get_type_hints(hint).items()})
    return SCALARS[hint] if hint in SCALARS else st.from_type(hint)


@pytest.mark.parametrize("examples", [10, *exhaustive(200)])
def test_every_record_comes_back_as_it_was(tmp_path: Path, examples: int) -> None:
    numbers = count()

    @settings(max_examples=examples, deadline=None)
    @given(plan=filled(Plan), records=st.tuples(*map(filled, (Environment, Ceilings, Result, Session))))
    def each(plan: Plan, records: tuple[Environment, Ceilings, Result, Session]) -> None:
        comes_back(tmp_path / str(next(numbers)), plan, records)

    each()


def comes_back(directory: Path, plan: Plan, records: tuple[Environment, Ceilings, Result, Session]) -> None:
    environment, ceilings, drawn, session = records
    result = replace(drawn, environment_hash=environment.hash)
    write(directory, environment, ceilings, result, session, plan=plan)
    run = read(directory)
    assert (run.plan, run.environment, run.ceilings) == (plan, environment, ceilings)
    assert (run.results, run.sessions, run.notices) == ((result,), (session,), ())
    with Journal.resume(directory) as journal:
        assert (journal.plan, journal.notices) == (plan, ())


def test_a_line_is_strict_json_with_its_kind(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    error = TensorError(tensor="Infinity", error=inf, eager_error=0.1, tolerance=-inf)
    parity = ParityResult(batch_size=1, tensors=1, worst=error, failures=(error,), failed=1)
    data = write(tmp_path, HERE, CEILINGS, replace(result(0), parity=parity), Session(started_at="now", wall_s=1.5))
    lines = [json.loads(line, parse_constant=refuse) for line in data.decode().splitlines()]
    assert [line["type"] for line in lines] == ["plan", "environment", "ceilings", "result", "session"]
    assert (lines[0]["schema"], lines[0]["cases"][1]["batch_size"]) == (SCHEMA, 2)
    assert lines[3]["parity"]["worst"] == {
        "tensor": "Infinity",
        "error": "Infinity",
        "eager_error": 0.1,
        "tolerance": "-Infinity",
    }
    assert read(tmp_path).results[0].parity == parity


def test_nan_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    before = write(tmp_path, HERE)
    with Journal.resume(tmp_path) as journal, pytest.raises(ValueError, match=r"phases_s\.build: NaN"):
        journal.append(replace(result(0), phases_s={"build": nan}))
    assert (tmp_path / JOURNAL_NAME).read_bytes() == before


def test_text_that_is_not_unicode_is_kept_readable(tmp_path: Path) -> None:
    write(tmp_path, HERE, result(0, Status.CRASHED, reason="no file caf\udce9"))
    assert read(tmp_path).results[0].reason == "no file caf\\udce9"


# --- what is read back ---


def test_the_last_result_of_a_case_wins_in_the_order_of_the_plan(tmp_path: Path) -> None:
    write(tmp_path, HERE, result(2), result(0, Status.OOM, reason="too big"), result(1), result(0))
    run = read(tmp_path)
    assert run.results == (result(0), result(1), result(2))
    assert run.pending == ()


def test_only_the_newest_environment_counts_and_the_rest_is_counted(tmp_path: Path) -> None:
    late = Ceilings(copy_bytes_per_s=2e9, matmul_flops_per_s={})
    write(tmp_path, HERE, CEILINGS, result(0), result(1), result(1), ELSEWHERE, late, result(1, environment=ELSEWHERE))
    run = read(tmp_path)
    assert (run.environment, run.ceilings) == (ELSEWHERE, late)
    assert run.results == (result(1, environment=ELSEWHERE),)
    assert run.pending == (CASES[0], CASES[2])
    assert run.notices == ("2 results measured in another environment left out: cpu was one and is another",)


def test_which_source_files_differ_is_told_on_reading_and_on_resuming(tmp_path: Path) -> None:
    revisions = ("1", "1-dirty-2", "1-dirty-3")
    clean, first, second = (Environment(facts={"revision": name}, sources={"bench/a.py": name}) for name in revisions)
    write(tmp_path, clean, result(0, environment=clean), first, result(0, environment=first), second)
    said = tuple(
        f"1 result measured in another environment left out: revision was {name} and is 1-dirty-3; "
        "1 source file differs: bench/a.py"
        for name in revisions[:2]
    )
    assert read(tmp_path).notices == said
    with Journal.resume(tmp_path) as journal:
        assert journal.left_out(second) == said
        assert [notice[: notice.index(":")] for notice in journal.left_out(clean)] == [said[0][: said[0].index(":")]]


def test_a_journal_without_digests_of_sources_is_read(tmp_path: Path) -> None:
    old = Environment(facts={"revision": "1-dirty"})
    data = write(tmp_path, old, result(0, environment=old))
    bare = data.replace(b',"sources":{},"changed_sources":[]', b"")
    assert len(bare) < len(data)
    (tmp_path / JOURNAL_NAME).write_bytes(bare)
    assert read(tmp_path).environment == old
    here = Environment(facts={"revision": "1-dirty-2"}, sources={"bench/a.py": "1"})
    with Journal.resume(tmp_path) as journal:
        journal.append(here)
    assert read(tmp_path).notices == (
        "1 result measured in another environment left out: revision was 1-dirty and is 1-dirty-2",
    )


def test_a_result_of_an_environment_that_is_not_there_is_counted(tmp_path: Path) -> None:
    write(tmp_path, result(0, environment=ELSEWHERE), HERE)
    assert read(tmp_path).notices == ("1 result measured in another environment left out",)


def test_coming_back_to_an_environment_finds_its_results_and_ceilings(tmp_path: Path) -> None:
    write(tmp_path, HERE, CEILINGS, result(0), ELSEWHERE, HERE)
    run = read(tmp_path)
    assert (run.environment, run.ceilings, run.results, run.notices) == (HERE, CEILINGS, (result(0),), ())
    (tmp_path / "new").mkdir()
    write(tmp_path / "new", HERE, CEILINGS, ELSEWHERE)
    assert read(tmp_path / "new").ceilings is None


def test_what_became_of_each_case_is_known_by_environment(tmp_path: Path) -> None:
    records = (result(0), result(1, Status.OOM, reason="too big"), result(2, Status.UNSUPPORTED, reason="no CUDA"))
    write(tmp_path, HERE, *records, result(1, environment=ELSEWHERE))
    with Journal.resume(tmp_path) as journal:
        assert journal.plan == PLAN
        before = {CASES[0].key: Status.VALID, CASES[1].key: Status.OOM, CASES[2].key: Status.UNSUPPORTED}
        assert journal.statuses(HERE.hash) == before
        assert journal.statuses(ELSEWHERE.hash) == {CASES[1].key: Status.VALID}
        assert journal.statuses("never") == {}
        journal.append(result(1))
        journal.append(result(0, Status.PARITY_FAILED, reason="worse"))
        after = {**before, CASES[0].key: Status.PARITY_FAILED, CASES[1].key: Status.VALID}
        assert journal.statuses(HERE.hash) == after
    with Journal.resume(tmp_path) as journal:
        assert journal.statuses(HERE.hash) == after


def test_a_run_is_readable_while_it_is_written(tmp_path: Path) -> None:
    with Journal.create(tmp_path, PLAN) as journal:
        journal.append(HERE)
        journal.append(result(0))
        assert read(tmp_path).results == (result(0),)


# --- torn and corrupt ---


def test_a_last_line_torn_at_any_byte_is_dropped_and_the_run_goes_on(tmp_path: Path) -> None:
    whole = write(tmp_path, HERE, result(0), result(1, reason="é"))
    path = tmp_path / JOURNAL_NAME
    kept = whole[: whole.rindex(b"\n", 0, -1) + 1]
    for size in range(len(kept) + 1, len(whole)):
        path.write_bytes(whole[:size])
        run = read(tmp_path)
        assert run.results == (result(0),)
        assert [notice for notice in run.notices if "line 4 was torn" in notice]
        assert path.read_bytes() == whole[:size]  # reading changes nothing
    for size in (len(kept) + 1, len(kept) + 40, len(whole) - 1):
        path.write_bytes(whole[:size])
        with Journal.resume(tmp_path) as journal:
            assert "line 4 was torn" in journal.notices[0]
            assert path.read_bytes() == kept
            journal.append(result(1, reason="é"))
        assert path.read_bytes() == whole
    path.write_bytes(kept)
    assert (read(tmp_path).results, read(tmp_path).notices) == ((result(0),), ())


# --- directories and locks ---


def test_the_place_that_a_run_lends_is_no_content(tmp_path: Path) -> None:
    (tmp_path / TEMPORARY).mkdir()
    Journal.create(tmp_path, PLAN).close()
    assert read(tmp_path).plan == PLAN


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"cannot write to .*; name another directory"):
            Journal.create(place, PLAN)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_directory_without_permission_to_write(tmp_path: Path) -> None:
    Journal.create(tmp_path / "run", PLAN).close()
    (tmp_path / "run" / JOURNAL_NAME).chmod(0o444)
    with pytest.raises(ValueError, match="cannot write to"):
        Journal.resume(tmp_path / "run")
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match="cannot write to"):
        Journal.create(tmp_path / "new", PLAN)
    tmp_path.chmod(0o755)


def test_what_is_no_run_directory(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"cannot read .*results\.jsonl: No such file.*; name the directory"):
            read(place)
        with pytest.raises(ValueError, match=r"nothing to resume: .*results\.jsonl does not exist"):
            Journal.resume(place)
    assert list(tmp_path.iterdir()) == []


def test_one_process_opens_a_journal_once(tmp_path: Path) -> None:
    with (
        Journal.create(tmp_path, PLAN),
        pytest.raises(ValueError, match=rf"another run \(pid {os.getpid()}\) is writing"),
    ):
        Journal.resume(tmp_path)
    Journal.resume(tmp_path).close()


def test_a_second_process_is_refused_at_once_and_may_read(tmp_path: Path, held: subprocess.Popen[str]) -> None:
    with pytest.raises(ValueError, match=rf"another run \(pid {held.pid}\) is writing .*run"):
        Journal.resume(tmp_path / "run")
    with pytest.raises(ValueError, match="not empty"):
        Journal.create(tmp_path / "run", PLAN)
    assert read(tmp_path / "run").results == (result(0),)


def test_a_second_process_cannot_start_a_run_before_the_first_wrote_its_plan(
    tmp_path: Path, held: subprocess.Popen[str]
) -> None:
    (tmp_path / "run" / JOURNAL_NAME).unlink()
    with pytest.raises(ValueError, match=rf"another run \(pid {held.pid}\) is writing .*run"):
        Journal.create(tmp_path / "run", PLAN)


def test_a_run_killed_hard_goes_on_without_losing_a_case(tmp_path: Path, held: subprocess.Popen[str]) -> None:
    held.send_signal(signal.SIGKILL)
    held.wait()
    with Journal.resume(tmp_path / "run") as journal:
        assert journal.notices == ()
        assert journal.statuses(HERE.hash) == {CASES[0].key: Status.VALID}
        journal.append(result(1))
    assert read(tmp_path / "run").results == (result(0), result(1))
