"""The `resbench` command: argument handling only. Imports no torch."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import click
from click.core import ParameterSource

from bench.terminal import failure
from bench.workers import parent
from bench.record import journal
from bench.report import junit
from bench import listings
from bench.run import runner, unfinished
from bench.audit.command import audit
from bench.workers.errors import WorkerError
from bench.kernels.command import kernels
from bench.terminal.options import (AXIS_OPTIONS, OUTPUT_OPTIONS, STRICT_OPTION, UNJUDGED, WEIGHTS_OPTION, Exit, directory_of, duration, epilog, exit_code, grouped, writes_to)
from bench.terminal.output import Output
from bench.run.watch import Watch
from bench.sweep.cases import Axes, expand, load_preset, max_batch_cases
from bench.traffic.command import traffic
from bench.types import MARKS, Case, Plan
from bench.terminal.wrapped import say

DEFAULT_PRESETS = {"cuda": "quick", "cpu": "cpu-quick"}
LISTS = {"paths": listings.paths, "presets": listings.presets, "models": listings.models}
WITH_RESUME = frozenset({"resume", "again", "budget", "strict", "quiet", "as_json"})  # the journal holds the rest
AGAIN = {"marked": MARKS}

_NEW_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_RUN_DIRECTORY = click.Path(path_type=Path, file_okay=False, exists=True)


class Refused(click.ClickException):
    """What was asked for cannot be done: one paragraph, no traceback."""

    exit_code = Exit.USAGE


class Failed(click.ClickException):
    """The harness itself failed, or got no answer from a worker: one paragraph, no traceback."""

    exit_code = Exit.FAILED


class Commands(click.Group):
    """Every command ends with one of the documented exit codes."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except WorkerError as error:
            raise Failed(f"torch does not work here: {error}; try `python -c 'import torch'`") from error
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(Exit.FAILED)
        except Exception as error:
            if isinstance(error, ValueError) and failure.is_for_people(error):
                raise Refused(str(error)) from error
            raise Failed(failure.tell(error, directory_of(ctx))) from error


def _version() -> str:
    try:
        return metadata.version("resbench")
    except metadata.PackageNotFoundError:
        return "(not installed: run from its source tree)"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(_version(), message="resbench %(version)s")
def main() -> None:
    """Which way of running this ResNet is fastest, is it still right, and why?"""


@main.command(
    epilog=epilog(
        "resbench run",
        "resbench run --preset h200 --budget 8m --out reports/h200",
        "resbench run --preset quick --depths 18,50 --batch-sizes 1,32 --paths eager,compile",
        "resbench run --resume reports/h200",
        "resbench run --preset mine.toml --json > run.json",
    )
)
@click.option("--preset", metavar="NAME|FILE.toml", help="The sweep. [default: quick with a CUDA GPU, else cpu-quick]")
@click.option("--out", type=_NEW_DIRECTORY, help="An empty or new directory. [default: reports/PRESET-TIME]")
@grouped(AXIS_OPTIONS)
@WEIGHTS_OPTION
@click.option("--find-max-batch", is_flag=True, help="Also search the largest batch that fits, per path.")
@click.option(
    "--budget",
    type=duration,
    help="End within this time, e.g. 8m; --resume goes on from there. [default: the preset's own, if any]",
)
@click.option("--timeout", type=duration, help="Wall time of a stage of a case, e.g. 10m. [default: the preset's]")
@click.option(
    "--resume",
    type=_RUN_DIRECTORY,
    help="Go on with the run in this directory: first what was never run, then what failed.",
)
@click.option("--again", type=click.Choice(tuple(AGAIN)), help="With --resume: measure marked rows again as well.")
@STRICT_OPTION
@grouped(OUTPUT_OPTIONS)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    *,
    preset: str | None,
    out: Path | None,
    weights: str | None,
    find_max_batch: bool,
    budget: float | None,
    timeout: float | None,
    resume: Path | None,
    again: str | None,
    strict: bool,
    quiet: bool,
    as_json: bool,
    **axes: Any,  # noqa: ANN401 - the fields of Axes
) -> None:
    """Benchmark: sweep, check parity, measure, and write the reports."""
    began = monotonic()
    output = Output(quiet=quiet, as_json=as_json)
    writes_to(resume or out)
    if again and resume is None:
        raise ValueError("--again goes with --resume DIR: a new run measures every case")
    if resume is not None:
        _refuse_beside_resume(ctx)
        if (resume / journal.JOURNAL_NAME).exists():  # else the runner says that there is nothing to resume
            _require_devices(journal.read(resume).plan.cases, f"the run in {resume}")
        directory, plan = resume, None
    else:
        plan = _plan(preset or DEFAULT_PRESETS[axes["device"] or _found_device()], Axes(**axes), weights)
        if find_max_batch:
            plan = replace(plan, cases=plan.cases + max_batch_cases(plan.cases))
        if timeout is not None:
            plan = replace(plan, settings=replace(plan.settings, timeout_s=timeout))
        directory = out or Path("reports") / f"{plan.name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    writes_to(directory)
    with Watch(output.console()) as watch:
        done = runner.run(
            directory, plan, observer=watch, budget_s=budget, again=AGAIN[again] if again else frozenset(), began=began
        )
    ends = exit_code(done, strict=strict)
    output.conclude(
        done,
        ends,
        directory=directory,
        files=[directory / journal.JOURNAL_NAME],
        lines=[listings.overhead(done), *unfinished.lines(done, directory)],
    )
    ctx.exit(ends)


@main.command(
    epilog=epilog(
        "resbench parity",
        "resbench parity --junit parity.xml",
        "resbench parity --precisions bf16 --paths eager,compile --modes train",
    )
)
@grouped(AXIS_OPTIONS)
@WEIGHTS_OPTION
@click.option("--junit", "junit_file", type=click.Path(path_type=Path, dir_okay=False), help="Write JUnit XML here.")
@click.option("--out", type=_NEW_DIRECTORY, help="Keep the run in this directory. [default: keep nothing]")
@grouped(OUTPUT_OPTIONS)
@click.pass_context
def parity(
    ctx: click.Context,
    /,
    *,
    weights: str | None,
    junit_file: Path | None,
    out: Path | None,
    quiet: bool,
    as_json: bool,
    **axes: Any,  # noqa: ANN401 - the fields of Axes
) -> None:
    """Check every path against eager and fp64, without timing.

    The preset `parity`, on the GPU where there is one: resnet18 at 64 px by every path, mode and precision, and
    resnet50 by the paths that have kernels for its bottleneck blocks.
    """
    output = Output(quiet=quiet, as_json=as_json)
    writes_to(out)
    if junit_file is not None:
        junit.refuse_unwritable(junit_file)
    plan = _plan("parity", Axes(**{**axes, "device": axes["device"] or _found_device()}), weights)
    plan = replace(plan, cases=tuple(replace(case, kind="parity") for case in plan.cases))
    with _kept(out) as directory, Watch(output.console()) as watch:
        done = runner.run(directory, plan, observer=watch)
    output.conclude(
        done,
        exit_code(done),
        directory=out,
        files=[
            *([out / journal.JOURNAL_NAME] if out else []),
            *([junit.write(done, junit_file)] if junit_file else []),
        ],
        lines=unfinished.lines(done, out),
        table=listings.verdicts(done),
    )
    ctx.exit(exit_code(done))


@main.command(epilog=epilog("resbench report reports/quick-20260102-030405", exits=UNJUDGED))
@click.argument("directory", type=_RUN_DIRECTORY)
@grouped(OUTPUT_OPTIONS)
def report(*, directory: Path, quiet: bool, as_json: bool) -> None:
    """Render the reports of a run again, from its journal.

    Ends with 0 when they are written, whatever became of the run.
    """
    writes_to(directory)
    done = journal.read(directory)
    Output(quiet=quiet, as_json=as_json).conclude(done, Exit.VALID, directory=directory, lines=done.notices)


@main.command("list", epilog=epilog("resbench list paths", "resbench list presets --json", exits=UNJUDGED))
@click.argument("what", type=click.Choice(tuple(LISTS)))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array on stdout.")
def list_(*, what: str, as_json: bool) -> None:
    """List the paths, presets or models."""
    rows = LISTS[what]()
    output = Output(as_json=as_json)
    if as_json:
        output.json(rows)
    else:
        output.console().print(listings.table(rows))


@main.command(epilog=epilog("resbench doctor", "resbench doctor --json", exits=UNJUDGED))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array on stdout.")
def doctor(*, as_json: bool) -> None:
    """Tell what this machine can run, and why not the rest."""
    output = Output(as_json=as_json)
    devices = parent.call("bench.machine.doctor:examine")
    if as_json:
        output.json(devices)
        return
    console = output.console()
    for device in devices:
        facts = [{"fact": name, "value": value} for name, value in device["facts"].items()]
        console.print(listings.table(facts, title=device["device"]))
        say(console, f"It reaches, measured now: {device['reaches']}.")
        paths, reasons = listings.capabilities(device["device"], device["cells"])
        console.print(paths)
        for reason in reasons:
            say(console, reason, indent=4)


main.add_command(audit)
main.add_command(kernels)
main.add_command(traffic)


def _plan(preset_name: str, axes: Axes, weights: str | None) -> Plan:
    """The plan of a preset with some axes and the weights replaced; refused where its device is not here."""
    preset = load_preset(preset_name)
    cases = expand(preset, axes)
    _require_devices(cases, f"preset {preset_name}")
    settings = preset.settings if weights is None else replace(preset.settings, weights=weights)
    return Plan(
        name=preset.name,
        cases=cases,
        settings=settings,
        command=shlex.join(["resbench", *sys.argv[1:]]),
        budget_s=preset.budget_s,
        emulated=axes.precisions is not None,
    )


def _require_devices(cases: tuple[Case, ...], what: str) -> None:
    if any(case.device == "cuda" for case in cases) and _found_device() != "cuda":
        raise ValueError(
            f"{what} would run on cuda, but torch finds no CUDA device here: start a run with --device cpu or a preset "
            "for CPU (cpu-quick, cpu), or see what is missing with `resbench doctor`"
        )


def _found_device() -> str:
    """The device to run on where nobody says."""
    return "cuda" if parent.call("bench.machine.doctor:has_cuda") else "cpu"


def _refuse_beside_resume(ctx: click.Context) -> None:
    given = [
        option.opts[0]
        for option in ctx.command.params
        if option.name not in WITH_RESUME and ctx.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise ValueError(
            f"{', '.join(given)} cannot be changed by --resume: the journal holds the plan of the run; leave it out, "
            "or start a new run"
        )


@contextmanager
def _kept(out: Path | None) -> Iterator[Path]:
    """The directory to run in: the one asked for, or one that is gone afterwards."""
    if out is not None:
        yield out
        return
    with TemporaryDirectory(prefix="resbench-parity-") as directory:
        yield Path(directory)
