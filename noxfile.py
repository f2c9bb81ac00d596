"""One session a habit: `nox -l` lists them, `nox -s bench -- --preset quick` passes arguments through.

Each body is one or two plain commands that also work without nox, and without a network, wherever the packages are
installed: README.md names them.
"""

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_venv = "yes"  # an environment with torch weighs gigabytes: build it once

PROJECT = nox.project.load_toml("pyproject.toml")
PYTEST = (
    "python", "-m", "pytest", "--numprocesses=auto", "--maxprocesses=8",  # a GB each
    "--dist=loadfile", "--no-loadscope-reorder",  # files share what they make once; the longest are not the last
)  # fmt: skip
CODE = ("bench", "kernels", "resnet", "tests", "noxfile.py")
OLDEST_TORCH = ("torch==2.11.*", "torchvision==0.26.*")  # each torchvision release is built for one torch release


def install(session: nox.Session, *groups: str, pins: tuple[str, ...] = ()) -> None:
    """Install the project, editable, with the named dependency groups of pyproject.toml."""
    session.install("-e", ".", *pins, *nox.project.dependency_groups(PROJECT, *groups))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, side by side on all cores; arguments go to pytest."""
    install(session, "tests")
    session.run(*PYTEST, *session.posargs)


@nox.session
def tests_exhaustive(session: nox.Session) -> None:
    """Run what `tests` leaves out: every planted fault, shape and precision; arguments go to pytest."""
    install(session, "tests")
    session.run(*PYTEST, "-m", "exhaustive", *session.posargs)


@nox.session
def tests_oldest_torch(session: nox.Session) -> None:
    """Run the tests against the oldest supported torch; arguments go to pytest."""
    install(session, "tests", pins=OLDEST_TORCH)
    session.run(*PYTEST, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmark this machine and write the reports; arguments go to `resbench run`."""
    install(session)
    session.run("python", "-m", "bench", "run", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """Check every path against eager, without timing; arguments go to `resbench parity`."""
    install(session)
    session.run("python", "-m", "bench", "parity", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Compile the Triton kernels for GPUs that need not be here; arguments go to `resbench audit`."""
    install(session)
    session.run("python", "-m", "bench", "audit", *session.posargs)


@nox.session
def perf(session: nox.Session) -> None:
    """Time the fused ops with pytest-benchmark and keep the result; arguments go to pytest (--benchmark-compare)."""
    install(session, "tests")
    session.run("python", "-m", "pytest", "tests/perf", "--benchmark-autosave", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, and check the formatting; arguments go to `ruff check`."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", ".", *session.posargs)
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of everything, strictly; arguments go to mypy."""
    install(session, "types")
    session.run("mypy", *CODE, *session.posargs)
