"""The commands that run cases: `run` and `parity`. Imports no torch."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import click
from click.core import ParameterSource

from bench.machine.command import device_found
from bench.record import journal
from bench.render.files import require_writable
from bench.report import junit, terminal
from bench.report.conclude import conclude
from bench.run import runner
from bench.run.report import unfinished
from bench.run.report.watch import Watch
from bench.sweep.axes import Axes
from bench.sweep.cases import expand, max_batch_cases
from bench.sweep.presets import load_preset
from bench.terminal.exits import exit_code
from bench.terminal.options import (
    AXIS_OPTIONS,
    NEW_DIRECTORY,
    OUTPUT_OPTIONS,
    RUN_DIRECTORY,
    STRICT_OPTION,
    WEIGHTS_OPTION,
    duration,
    epilog,
    grouped,
    models_of,
    writes_to,
)
from bench.terminal.output import Output
from bench.types import MARKS, Case, Plan

DEFAULT_PRESETS = {"cuda": "quick", "cpu": "cpu-quick"}
WITH_RESUME = frozenset({"resume", "again", "budget", "strict", "quiet", "as_json"})  # the journal holds the rest
AGAIN = {"marked": MARKS}


@click.command(
    epilog=epilog(
        "resbench run",
        "resbench run --preset h200 --budget 8m --out reports/h200",
        "resbench run --preset quick --depths 18,50 --batch-sizes 1,32 --paths eager,compile",
        "resbench run --resume reports/h200",
        "resbench run --preset mine.toml --json > run.json",
    )
)
@click.option(
    "--preset", metavar="NAME|FILE.toml", help="The sweep to run. [default: quick with a CUDA GPU, else cpu-quick]"
)
@click.option("--out", type=NEW_DIRECTORY, help="An empty or new directory. [default: reports/PRESET-TIME]")
@grouped(AXIS_OPTIONS)
@WEIGHTS_OPTION
@click.option("--find-max-batch", is_flag=True, help="Also search for the largest batch that fits, per path.")
@click.option(
    "--budget",
    type=duration,
    help="End within this time, e.g. 8m; --resume goes on from there. [default: the preset's own, if any]",
)
@click.option("--timeout", type=duration, help="Time limit of each stage of a case, e.g. 10m. [default: the preset's]")
@click.option(
    "--resume",
    type=RUN_DIRECTORY,
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
    **axes: Any,  # noqa: ANN401 - the fields of Axes, and the depths
) -> None:
    """Benchmark: sweep, check parity, measure, and write the reports."""
    began = monotonic()
    output = Output(quiet=quiet, as_json=as_json)
    writes_to(resume or out)
    if again and resume is None:
        raise ValueError("--again needs --resume DIRECTORY: a new run measures every case anyway")
    if resume is not None:
        _refuse_beside_resume(ctx)
        if (resume / journal.JOURNAL_NAME).exists():  # else the runner says that there is nothing to resume
            _require_devices(journal.read(resume).plan.cases, f"the run in {resume}")
        directory, plan = resume, None
    else:
        plan = _plan(preset or DEFAULT_PRESETS[axes["device"] or device_found()], _axes(**axes), weights)
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
    conclude(
        output,
        done,
        ends,
        directory=directory,
        files=[directory / journal.JOURNAL_NAME],
        lines=[terminal.overhead(done), *unfinished.lines(done, directory)],
    )
    ctx.exit(ends)


@click.command(
    epilog=epilog(
        "resbench parity",
        "resbench parity --junit parity.xml",
        "resbench parity --precisions bf16 --paths eager,compile --modes train",
    )
)
@grouped(AXIS_OPTIONS)
@WEIGHTS_OPTION
@click.option(
    "--junit", "junit_file", type=click.Path(path_type=Path, dir_okay=False), help="Write JUnit XML to this file."
)
@click.option("--out", type=NEW_DIRECTORY, help="Keep the run in this directory. [default: keep nothing]")
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
    **axes: Any,  # noqa: ANN401 - the fields of Axes, and the depths
) -> None:
    """Check every path against eager and fp64, without timing.

    Runs the preset `parity`, on the GPU where there is one: resnet18 at 64 px by every path, mode and precision, and
    resnet50 by the paths that have kernels for its bottleneck blocks.
    """
    output = Output(quiet=quiet, as_json=as_json)
    writes_to(out)
    if junit_file is not None:
        require_writable(junit_file)
    plan = _plan("parity", _axes(**{**axes, "device": axes["device"] or device_found()}), weights)
    plan = replace(plan, cases=tuple(replace(case, kind="parity") for case in plan.cases))
    with _kept(out) as directory, Watch(output.console()) as watch:
        done = runner.run(directory, plan, observer=watch)
    conclude(
        output,
        done,
        exit_code(done),
        directory=out,
        files=[
            *([out / journal.JOURNAL_NAME] if out else []),
            *([junit.write(done, junit_file)] if junit_file else []),
        ],
        lines=unfinished.lines(done, out),
        table=terminal.verdicts(done),
    )
    ctx.exit(exit_code(done))


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
    if any(case.device == "cuda" for case in cases) and device_found() != "cuda":
        raise ValueError(
            f"{what} would run on cuda, but torch finds no CUDA device here: start a run with --device cpu or a preset "
            "for CPU (cpu-quick, cpu), or see what is missing with `resbench doctor`"
        )


def _refuse_beside_resume(ctx: click.Context) -> None:
    given = [
        option.opts[0]
        for option in ctx.command.params
        if option.name not in WITH_RESUME and ctx.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise ValueError(
            f"{', '.join(given)} cannot be given with --resume: the journal holds the plan of the run; leave it out, "
            "or start a new run"
        )


def _axes(
    *,
    models: tuple[str, ...] | None,
    depths: tuple[str, ...] | None,
    **others: Any,  # noqa: ANN401 - as above
) -> Axes:
    return Axes(models=models_of(models, depths), **others)


@contextmanager
def _kept(out: Path | None) -> Iterator[Path]:
    """The directory to run in: the one asked for, or one that is gone afterwards."""
    if out is not None:
        yield out
        return
    with TemporaryDirectory(prefix="resbench-parity-") as directory:
        yield Path(directory)
