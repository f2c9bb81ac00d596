"""Which code this is, in real repositories: as committed, edited, exported, of another user, without git."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.machine.revision import Revision, revision

FILES = {
    "bench/measure/timing.py": "steps = 1\n",
    "bench/render/text.py": "digits = 3\n",
    "kernels/conv.cpp": "int x;\n",
    "kernels/conv.hpp": "int y;\n",
    "resnet/models/resnet.py": "layers = 18\n",
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    command = ("git", "-C", str(root), *identity, *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


def commit(root: Path) -> str:
    git(root, "add", "--all", "--force")
    git(root, "commit", "--quiet", "--message", "as it is")
    return git(root, "rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def nobodys_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of git: whose checkouts are safe, what is ignored."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one commit."""
    root = write(tmp_path.resolve() / "checkout", FILES)
    git(root, "init", "--quiet")
    commit(root)
    return root


def test_a_clean_tree_is_its_last_commit_that_touched_a_source(root: Path) -> None:
    head = git(root, "rev-parse", "HEAD")
    assert revision(root) == Revision(name=head, digests=revision(root).digests)
    assert list(revision(root).digests) == sorted(FILES)
    write(root, {"README.md": "no source\n", "bench/presets/mine.toml": "no source either\n"})
    assert revision(root).name == head
    commit(root)
    assert revision(root).name == head


def test_two_edits_are_two_revisions_and_one_edit_is_one(root: Path) -> None:
    head = revision(root).name
    names = []
    for text in ("steps = 2\n", "steps = 3\n", "steps = 2\n"):
        write(root, {"bench/measure/timing.py": text})
        found = revision(root)
        assert found.changed == ("bench/measure/timing.py",)
        names.append(found.name)
    assert names[0] == names[2] != names[1]
    assert all(name.startswith(f"{head}-dirty-") and len(name) == len(f"{head}-dirty-") + 12 for name in names)
    git(root, "checkout", "--quiet", ".")
    assert revision(root).name == head


CHANGES: dict[str, Callable[[Path], object]] = {
    "bench/report/new.py": lambda file: file.write_text("import os\n"),
    "kernels/a folder/new.hpp": lambda file: file.write_text("int z;\n"),
    "resnet/models/resnet.py": lambda file: file.unlink(),
    "kernels/conv.cpp": lambda file: file.write_text("int z;\n"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_new_a_deleted_and_an_edited_file_change_the_revision(root: Path, name: str) -> None:
    git(root, "config", "status.showUntrackedFiles", "no")
    head = revision(root).name
    (root / name).parent.mkdir(exist_ok=True)
    CHANGES[name](root / name)
    found = revision(root)
    assert found.name.startswith(f"{head}-dirty-")
    assert found.changed == (name,)


def exported(root: Path, _: pytest.MonkeyPatch) -> None:
    shutil.rmtree(root / ".git")


def of_another_user(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")


def without_git(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def inside_another_checkout(root: Path, _: pytest.MonkeyPatch) -> None:
    """As site-packages in somebody's repository."""
    shutil.rmtree(root / ".git")
    git(root.parent, "init", "--quiet")


def with_a_broken_index(root: Path, _: pytest.MonkeyPatch) -> None:
    (root / ".git" / "index").write_bytes(b"torn")


UNTOLD = (exported, of_another_user, without_git, inside_another_checkout, with_a_broken_index)


@pytest.mark.parametrize("how", UNTOLD, ids=lambda how: how.__name__)
def test_where_git_does_not_tell_the_sources_do(
    root: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    digests = revision(root).digests
    how(root, monkeypatch)
    first = revision(root)
    assert (first.name[:7], len(first.name), first.digests) == ("source-", 7 + 12, digests)
    write(root, {"resnet/models/resnet.py": "layers = 50\n"})
    assert revision(root).name != first.name


def test_the_same_contents_have_the_same_hash(tmp_path: Path) -> None:
    first = write(tmp_path / "one", FILES)
    second = write(tmp_path / "another" / "place", dict(reversed(FILES.items())))
    for file in second.rglob("*.py"):
        os.utime(file, (1, 1))
        file.chmod(0o755)
    assert revision(first) == revision(second)
    (second / "bench" / "measure" / "timing.py").rename(second / "bench" / "renamed.py")
    assert revision(first).name != revision(second).name


def test_no_sources_are_an_unknown_revision(tmp_path: Path) -> None:
    assert revision(tmp_path) == Revision(name="unknown", digests={})
