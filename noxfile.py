"""One session a habit: `nox -l` lists them, `nox -s bench -- --preset quick` passes arguments through.

Each body is one or two plain commands that also work without nox, and without a network, wherever the packages are
installed: README.md names them.
"""

from functools import partial
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_venv = "yes"  # an environment with torch weighs gigabytes: build it once
nox.options.default_venv_backend = "uv|virtualenv"

PROJECT = nox.project.load_toml("pyproject.toml")
PYTEST = (
    "-m", "pytest", "--numprocesses=auto", "--maxprocesses=8",  # a GB each
    "--dist=loadfile", "--no-loadscope-reorder",  # files share what they make once; the longest are not the last
)  # fmt: skip
CODE = ("bench", "kernels", "resnet", "tests", "noxfile.py")
OLDEST_TORCH = ("torch==2.11.*", "torchvision==0.26.*")  # each torchvision release is built for one torch release
shared = partial(nox.session, venv_backend="none", requires=["environment"])  # a session in the environment of all


def install(session: nox.Session, *groups: str, pins: tuple[str, ...] = ()) -> None:
    """Install the project, editable, with the named dependency groups of pyproject.toml."""
    session.install("-e", ".", *pins, *nox.project.dependency_groups(PROJECT, *groups))


def run(session: nox.Session, *arguments: str) -> None:
    """Run the Python of the environment that `environment` has made; arguments of the command line come last."""
    python = Path(session.cache_dir).parent / "environment" / "bin" / "python"
    session.run(str(python), *arguments, *session.posargs, external=True)


@nox.session
def environment(session: nox.Session) -> None:
    """Install what the sessions below share: torch once, not once a session."""
    install(session, "tests", "types")


@shared()
def tests(session: nox.Session) -> None:
    """Run the tests, side by side on all cores; arguments go to pytest."""
    run(session, *PYTEST)


@shared()
def tests_exhaustive(session: nox.Session) -> None:
    """Run what `tests` leaves out: every planted fault, shape and precision; arguments go to pytest."""
    run(session, *PYTEST, "-m", "exhaustive")


@shared()
def bench(session: nox.Session) -> None:
    """Benchmark this machine and write the reports; arguments go to `resbench run`."""
    run(session, "-m", "bench", "run")


@shared()
def parity(session: nox.Session) -> None:
    """Check every path against eager, without timing; arguments go to `resbench parity`."""
    run(session, "-m", "bench", "parity")


@shared()
def audit(session: nox.Session) -> None:
    """Compile the Triton kernels for GPUs that need not be here; arguments go to `resbench audit`."""
    run(session, "-m", "bench", "audit")


@shared()
def perf(session: nox.Session) -> None:
    """Time the fused ops with pytest-benchmark and keep the result; arguments go to pytest (--benchmark-compare)."""
    run(session, "-m", "pytest", "tests/perf", "--benchmark-autosave")


@shared()
def docs(session: nox.Session) -> None:
    """Write docs/api.md from the docstrings of the public names."""
    run(session, "-m", "docs.api")


@shared()
def types(session: nox.Session) -> None:
    """Check the types of everything, strictly; arguments go to mypy."""
    run(session, "-m", "mypy", *CODE)


@nox.session
def tests_oldest_torch(session: nox.Session) -> None:
    """Run the tests against the oldest supported torch, in an environment of its own; arguments go to pytest."""
    install(session, "tests", pins=OLDEST_TORCH)
    session.run("python", *PYTEST, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, and check the formatting; arguments go to `ruff check`."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", ".", *session.posargs)
    session.run("ruff", "format", "--check", ".")
