"""The architecture: which way imports run, what the parent may load, and names that people rely on."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from bench.cli import main
from bench.terminal.options import EXIT_CODES, Exit
from bench.sweep.cases import preset_names
from resnet.paths import PATHS

ROOT = Path(__file__).parents[1]
ROOMS = ("tests", "bench", "resnet", "kernels")  # each may import those after it, and itself
WORKER_ROOTS = ("torch", "torchvision", "triton")

# Everything that a run's parent process loads, directly or not, starts at these.
PARENT = (
    "bench.cli", "bench.types", "bench.sweep.cases", "bench.run.runner", "bench.record.journal", "bench.record.metrics", "bench.stats",
    "bench.workers.parent", "bench.run.watch", "bench.report.write", "bench.report.terminal", "bench.report.junit",
    "bench.kernels.command", "bench.kernels.report.markdown", "bench.kernels.report.terminal", "bench.kernels.report.trials",
    "bench.traffic.command", "bench.traffic.report", "bench.__main__", "resnet.paths", "resnet.models.table",
)  # fmt: skip

PATH_NAMES = (
    "eager", "channels_last", "compile", "compile-reduce-overhead", "compile-max-autotune", "cuda-graph",
    "triton", "triton-compile", "triton-cuda-graph", "triton-rebuild", "gram", "gram-cuda-graph", "gram-rebuild",
    "folded", "folded-triton",
)  # fmt: skip
PRESET_NAMES = ("cpu", "cpu-quick", "full", "h200", "parity", "quick")

AXES = {"--depths", "--modes", "--precisions", "--batch-sizes", "--paths", "--image-size", "--device"}
OPTIONS = {
    "run": AXES
    | {
        "--weights",
        "--preset",
        "--out",
        "--find-max-batch",
        "--budget",
        "--timeout",
        "--resume",
        "--again",
        "--strict",
        "-q",
        "--quiet",
        "--json",
    },
    "parity": AXES | {"--weights", "--junit", "--out", "-q", "--quiet", "--json"},
    "audit": {"--arch", "--dtypes", "--forms", "--shape", "--csv", "-q", "--quiet", "--json"},
    "kernels": {
        "--depths",
        "--shape",
        "--forms",
        "--dtypes",
        "--mode",
        "--image-size",
        "--device",
        "--budget",
        "--search",
        "--out",
        "-q",
        "--quiet",
        "--json",
    },
    "traffic": {
        "--mode",
        "--precision",
        "--batch",
        "--image-size",
        "--paths",
        "--device",
        "--counters",
        "--layers",
        "--markdown",
        "-q",
        "--quiet",
        "--json",
    },
    "report": {"-q", "--quiet", "--json"},
    "list": {"--json"},
    "doctor": {"--json"},
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the rooms by its dotted name."""
    files = (file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
    return {name(file): file for file in files}


def name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(module: str, *, deferred: bool) -> frozenset[str]:
    """What a module imports when it is loaded; with `deferred` what its functions import as well."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if deferred else at_load(tree)
    return frozenset(target for node in nodes for target in targets(node))


def at_load(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is loaded: not the bodies of functions."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from at_load(child)


def targets(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        source = str(node.module)
        for alias in node.names:
            submodule = f"{source}.{alias.name}"
            yield submodule if submodule in modules() else source


def ours(module: str, *, deferred: bool = False) -> set[str]:
    """The modules of this project among a module's imports."""
    return {target for target in imports(module, deferred=deferred) if target in modules()}


def test_imports_run_downward() -> None:
    upward = [
        f"{module} imports {target}"
        for module in modules()
        for target in imports(module, deferred=True)
        if (room := target.split(".")[0]) in ROOMS and ROOMS.index(room) < ROOMS.index(module.split(".")[0])
    ]
    assert upward == []


def test_no_cycles() -> None:
    graph = {module: ours(module, deferred=True) for module in modules()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_nothing_below_the_harness_knows_a_harness_library() -> None:
    """The model and the kernels need torch and Triton alone, and numpy for Triton's interpreter."""
    allowed = {*sys.stdlib_module_names, *WORKER_ROOTS, "numpy", "resnet", "kernels"}
    foreign = [
        f"{module} imports {target}"
        for module in modules()
        if module.split(".")[0] in ("resnet", "kernels")
        for target in imports(module, deferred=True)
        if target.split(".")[0] not in allowed
    ]
    assert foreign == []


@pytest.mark.parametrize("start", PARENT)
def test_the_parent_imports_no_torch(start: str) -> None:
    """Transitively, at load; the way to torch is named."""
    ways: list[tuple[str, ...]] = [(start,)]
    seen = {start}
    while ways:
        way = ways.pop()
        heavy = [target for target in imports(way[-1], deferred=False) if target.split(".")[0] in WORKER_ROOTS]
        assert heavy == [], f"{' -> '.join(way)} imports {heavy}"
        fresh = ours(way[-1]) - seen
        seen |= fresh
        ways += [(*way, module) for module in fresh]


@pytest.mark.parametrize("statement", ["import bench.cli", "import bench.report.write, bench.record.metrics, bench.record.journal"])
def test_torch_is_not_loaded_in_the_parent(statement: str) -> None:
    """As above, through other people's packages as well."""
    code = f"{statement}, sys; print([name for name in {WORKER_ROOTS!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout == "[]\n"


def test_help_loads_neither_pandas_nor_matplotlib() -> None:
    code = "import bench.cli, sys; print([name for name in ('pandas', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout == "[]\n"


def test_names_that_people_rely_on() -> None:
    assert tuple(path.name for path in PATHS) == PATH_NAMES
    assert preset_names() == PRESET_NAMES


def test_commands_and_options() -> None:
    options = {
        command: {option for parameter in made.params for option in parameter.opts if option.startswith("-")}
        - {"--batch-size"}  # a second spelling of --batch-sizes
        for command, made in main.commands.items()
    }
    assert options == OPTIONS


def test_readme_keeps_the_promises_of_the_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in PATHS:
        needs = ", ".join(path.needs) or "–"  # noqa: RUF001 - an en dash
        assert f"| `{path.name}` | {path.summary} | {', '.join(path.modes)} | {needs} |" in text
    for code in Exit:
        assert f"| {code:d} | {EXIT_CODES[code]} |" in text
    for name_ in PRESET_NAMES:
        assert f"`{name_}`" in text
    for command in OPTIONS:
        assert f"`resbench {command}" in text


def test_what_the_readme_says_of_fuse_runs_in_a_process_of_its_own() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "fuse(" in block)
    code += "import torch\nmodel.eval()\nwith torch.no_grad(): print(model(torch.randn(1, 3, 32, 32)).shape)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.stdout == "torch.Size([1, 1000])\n", done.stderr


def test_one_test_command_everywhere() -> None:
    command = "python -m pip install nox && nox -s tests"
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == command


def test_what_tells_of_failures_needs_the_standard_library_alone() -> None:
    """It has to work where a package is missing."""
    for module in ("bench.__main__", "bench.terminal.failure", "bench.terminal.streams", "bench.workers.errors"):
        others = {target.split(".")[0] for target in imports(module, deferred=False)} - sys.stdlib_module_names
        assert others <= {"bench"}
        assert ours(module) <= {"bench", "bench.terminal.failure", "bench.terminal.streams", "bench.workers.errors"}


def test_the_package_ships_what_it_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"resbench": "bench.__main__:main"}
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["bench", "kernels", "resnet"]
