"""The `resbench` command: argument handling only. Imports no torch."""

from importlib import metadata
from typing import Any

import click

from bench.audit.command import audit
from bench.compare.command import agreement
from bench.kernels.command import kernels
from bench.machine.command import doctor
from bench.numerics.command import numerics
from bench.report.command import report
from bench.run.command import parity, run
from bench.sweep.command import list_
from bench.terminal import failure
from bench.terminal.exits import Exit
from bench.terminal.options import directory_of
from bench.traffic.command import traffic
from bench.workers.errors import WorkerError, is_for_people


class Refused(click.ClickException):
    """The command cannot do what was asked for: one paragraph, no traceback."""

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
            if isinstance(error, ValueError) and is_for_people(error):
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


for command in (run, parity, report, list_, doctor, audit, kernels, traffic, numerics, agreement):
    main.add_command(command)
