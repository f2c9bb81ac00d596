"""The architecture: which way imports run, what the parent may load, and names that people rely on."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

from bench.cli import main
from bench.sweep.presets import preset_names
from bench.terminal.exits import EXIT_CODES, Exit
from bench.workers.entry import Remote
from resnet.paths import PATHS

ROOT = Path(__file__).parents[1]
ROOMS = ("tests", "docs", "bench", "resnet", "kernels")  # each may import those after it, and itself
WORKER_ROOTS = ("torch", "torchvision", "triton")
# The packages of bench from the top: each may import those of its own line and of the lines after it.
LAYERS = (
    ("bench.__main__", "bench.cli"),
    ("bench.audit", "bench.compare", "bench.kernels", "bench.numerics", "bench.run", "bench.traffic"),
    ("bench.measure", "bench.parity", "bench.report"),
    ("bench.machine", "bench.sweep"),
    ("bench.render", "bench.terminal"),
    ("bench.record",),
    ("bench.workers",),
    ("bench", "bench.types", "bench.stats"),
)
MOST_LINES = 400  # of a file
MOST_LOOSE = 5  # modules of bench that are in no package

# What tells of failures has to work where a package is missing.
STANDARD_LIBRARY_ALONE = ("bench.__main__", "bench.terminal.failure", "bench.terminal.streams", "bench.workers.errors")

PATH_NAMES = (
    "eager", "channels_last", "compile", "compile-reduce-overhead", "compile-max-autotune", "cuda-graph",
    "triton", "triton-compile", "triton-cuda-graph", "triton-rebuild", "gram", "gram-cuda-graph", "gram-rebuild",
    "folded", "folded-triton",
)  # fmt: skip
PRESET_NAMES = ("cpu", "cpu-quick", "full", "h200", "parity", "quick")

AXES = {"--models", "--depths", "--modes", "--precisions", "--batch-sizes", "--paths", "--image-size", "--device"}
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
        "--models",
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
    "numerics": {"--out", "--device", "-q", "--quiet", "--json"},
    "agreement": {
        "--model", "--mode", "--precision", "--batch-size", "--image-size", "--path", "--device", "--rounds",
        "--seconds", "--out", "-q", "--quiet", "--json",
    },
}  # fmt: skip


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
    return frozenset(target for node in run(tree, deferred=deferred) for target in targets(node))


def run(node: ast.AST, *, deferred: bool) -> Iterator[ast.AST]:
    """The nodes that run when the module is loaded, not the bodies of functions; with `deferred` all that ever run."""
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not deferred:
        return
    skipped = node.body if isinstance(node, ast.If) and for_the_type_checker(node) else []
    for child in ast.iter_child_nodes(node):
        if child not in skipped:
            yield from run(child, deferred=deferred)


def for_the_type_checker(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


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


def package(module: str) -> str:
    """The package that a module is in; a module that lies beside packages stands for itself."""
    parent = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    beside_packages = any(
        other.startswith(f"{parent}.") and other.count(".") > parent.count(".") + 1 for other in modules()
    )
    return module if beside_packages else parent


def layer(module: str) -> int:
    """Which line of LAYERS a module of bench is in, counted from the top."""
    ways = [".".join(module.split(".")[:length]) for length in range(module.count(".") + 1, 0, -1)]
    return next(number for way in ways for number, names in enumerate(LAYERS) if way in names)


def test_imports_run_downward() -> None:
    upward = [
        f"{module} imports {target}"
        for module in modules()
        for target in imports(module, deferred=True)
        if (room := target.split(".")[0]) in ROOMS and ROOMS.index(room) < ROOMS.index(module.split(".")[0])
    ]
    assert upward == []


def test_imports_within_the_harness_run_downward() -> None:
    upward = [
        f"{module} imports {target}"
        for module in modules()
        for target in ours(module, deferred=True)
        if module.startswith("bench") and target.startswith("bench") and layer(target) < layer(module)
    ]
    assert upward == []


def test_no_cycles_of_files() -> None:
    graph = {module: ours(module, deferred=True) for module in modules()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_no_cycles_of_packages() -> None:
    graph: dict[str, set[str]] = {}
    for module in modules():
        inside = package(module)
        graph.setdefault(inside, set()).update({package(target) for target in ours(module, deferred=True)} - {inside})
    TopologicalSorter(graph).prepare()


def test_files_are_short() -> None:
    lines = {module: file.read_text(encoding="utf-8").count("\n") for module, file in modules().items()}
    assert {module: number for module, number in lines.items() if number > MOST_LINES} == {}


def test_few_modules_of_the_harness_are_in_no_package() -> None:
    loose = [module for module, file in modules().items() if file.parent == ROOT / "bench"]
    assert len(set(loose) - {"bench"}) <= MOST_LOOSE


def test_every_package_has_its_mirror_in_the_tests() -> None:
    packages = {file.parent for file in modules().values() if not file.is_relative_to(ROOT / "tests")}
    mirrors = {ROOT / "tests" / folder.relative_to(ROOT) for folder in packages}
    assert [str(folder) for folder in sorted(mirrors) if not list(folder.glob("test_*.py"))] == []


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


def test_the_parent_imports_no_torch() -> None:
    """Nor does anything that the command line and a command reach, at load or later; the way to torch is named."""
    starts = [module for module in modules() if module == "bench.cli" or module.endswith(".command")]
    assert len(starts) >= len(main.commands) - 1, "run and parity share one"
    ways: list[tuple[str, ...]] = [(start,) for start in starts if start.startswith("bench.")]
    seen = set(starts)
    while ways:
        way = ways.pop()
        heavy = [target for target in imports(way[-1], deferred=True) if target.split(".")[0] in WORKER_ROOTS]
        assert heavy == [], f"{' -> '.join(way)} imports {heavy}"
        fresh = ours(way[-1], deferred=True) - seen
        seen |= fresh
        ways += [(*way, module) for module in fresh]
    assert {"bench.run.runner", "bench.report.write", "bench.workers.parent"} <= seen


def entries() -> set[str]:
    """Each function that the parent names: an attribute of what `remote` stands for."""
    found = set()
    for module in (name for name in modules() if name.startswith("bench.")):
        remotes = {name: of for name, of in vars(import_module(module)).items() if isinstance(of, Remote)}
        nodes = ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))) if remotes else ()
        found |= {
            str(getattr(remotes[node.value.id], node.attr))
            for node in nodes
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in remotes
        }
    return found


def test_every_entry_of_a_worker_is_a_function() -> None:
    named = entries()
    assert {"bench.run.worker:run_case", "bench.kernels.worker:serve_ops", "bench.machine.doctor:examine"} <= named
    for entry in named:
        module, _, function = entry.partition(":")
        assert callable(getattr(import_module(module), function)), entry


@pytest.mark.parametrize(
    "statement", ["import bench.cli", "import bench.report.write, bench.record.metrics, bench.record.journal"]
)
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
        - ({"--batch-size"} if command != "agreement" else set())  # a second spelling of --batch-sizes
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
    code += "from tests.support.quick_interpreter import hurry\nhurry()\n"
    code += "import torch\nmodel.eval()\nwith torch.no_grad(): print(model(torch.randn(1, 3, 32, 32)).shape)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.stdout == "torch.Size([1, 1000])\n", done.stderr


def test_one_test_command_everywhere() -> None:
    command = "python -m pip install nox && nox -s tests"
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == command


def test_what_tells_of_failures_needs_the_standard_library_alone() -> None:
    """It has to work where a package is missing."""
    for module in STANDARD_LIBRARY_ALONE:
        others = {target.split(".")[0] for target in imports(module, deferred=False)} - sys.stdlib_module_names
        assert others <= {"bench"}
        assert ours(module) <= {"bench", "bench.terminal", "bench.workers", *STANDARD_LIBRARY_ALONE}


def test_the_package_ships_what_it_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"resbench": "bench.__main__:main"}
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["bench", "kernels", "resnet"]
