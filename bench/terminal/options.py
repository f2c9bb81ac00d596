"""The vocabulary of the command line: types of values, groups of options and exit codes. Imports no torch."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from bench.terminal.exits import EXIT_CODES, Exit
from bench.types import Device
from bench.workers import places
from resnet.models.table import numbered

Command = TypeVar("Command", bound=Callable[..., Any])

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?")


_DIRECTORY = "bench.directory"


def writes_to(directory: Path | None) -> None:
    """Note the directory that the running command writes to: see `places.settle`; reports of failures go there too."""
    if directory is not None:
        click.get_current_context().meta[_DIRECTORY] = directory
    places.settle(directory)


def directory_of(context: click.Context) -> Path | None:
    """The directory that its command writes to, as far as is known."""
    directory: Path | None = context.meta.get(_DIRECTORY)
    return directory


# Functions that click calls to convert a value; the function's name stands for the value in --help.


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names; the sweep checks them."""
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise click.BadParameter(f"{text!r} has an empty item: separate values by single commas, e.g. train,infer")
    return words


def numbers(text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers; the sweep checks them."""
    try:
        return tuple(int(word) for word in names(text))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers: write e.g. 18,50") from None


def duration(text: str) -> float:
    """Seconds, or hours, minutes and seconds, e.g. `90`, `8m`, `1h30m`; gives seconds."""
    match = _DURATION.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = hours * 3600 + minutes * 60 + seconds
    if not total:
        raise click.BadParameter(f"{text!r} is not a time above zero: write e.g. 90s, 8m or 1h30m")
    return float(total)


def depths(text: str) -> tuple[str, ...]:
    """Comma-separated depths of reference ResNets as the names of models: 18,50 stands for resnet18,resnet50."""
    try:
        return numbered(numbers(text))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def models_of(models: tuple[str, ...] | None, depths: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The models that `--models` and `--depths` name together; None where neither was given."""
    return tuple(dict.fromkeys((*(models or ()), *(depths or ())))) or None


DEPTHS_OPTION = click.option("--depths", type=depths, help="Short for --models: 18,50 stands for resnet18,resnet50.")


def shape(text: str) -> tuple[int, int, int, int]:
    """N,C,H,W of a tensor with more than one value per channel, e.g. 256,64,56,56."""
    try:
        n, channels, height, width = (int(size) for size in text.split(","))
    except ValueError:
        n = channels = height = width = 0
    if min(n, channels, height, width) < 1 or n * height * width == 1:
        raise click.BadParameter(
            f"{text!r} is not N,C,H,W with more than one value per channel: write e.g. 256,64,56,56"
        )
    return n, channels, height, width


def shape_option(help_: str) -> Callable[[Command], Command]:
    """`--shape`, which can be repeated."""
    return click.option("--shape", "shapes", type=shape, multiple=True, metavar="N,C,H,W", help=help_)


AXIS_OPTIONS = (
    click.option("--models", type=names, help="Names from `resbench list models`."),
    DEPTHS_OPTION,
    click.option("--modes", type=names, help="train, infer or both."),
    click.option("--precisions", type=names, help="Any of fp32, tf32, bf16, fp16."),
    click.option("--batch-sizes", "--batch-size", type=numbers, help="Batch sizes, e.g. 1,32."),
    click.option("--paths", type=names, help="Names from `resbench list paths`, all or capable; -NAME leaves one out."),
    click.option("--image-size", type=int, help="Height of the images in pixels. [default: the network's own]"),
    click.option("--device", type=click.Choice(get_args(Device)), help="Where to run."),
)

WEIGHTS_OPTION = click.option(
    "--weights",
    metavar="NAME|FILE",
    help="Published weights by name, e.g. DEFAULT, or a state_dict file. [default: random]",
)

STRICT_OPTION = click.option(
    "--strict", is_flag=True, help="Also end with 3 if a row is marked (unstable, throttled, ...) or left out."
)

OUTPUT_OPTIONS = (
    click.option("-q", "--quiet", is_flag=True, help="Print only the names of the files written."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout; progress goes to stderr."),
)


def grouped(options: tuple[Callable[[Command], Command], ...]) -> Callable[[Command], Command]:
    """A decorator that adds a group of options, in their order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def epilog(*examples: str, exits: Mapping[Exit, str] = EXIT_CODES) -> str:
    """The end of a --help page: examples and exit codes."""
    codes = [f"{code:d}  {meaning}" for code, meaning in exits.items()]
    return "\n\n".join(
        f"\b\n{title}:\n  " + "\n  ".join(lines) for title, lines in (("Examples", examples), ("Exit codes", codes))
    )


NEW_DIRECTORY = click.Path(path_type=Path, file_okay=False)
RUN_DIRECTORY = click.Path(path_type=Path, file_okay=False, exists=True)
