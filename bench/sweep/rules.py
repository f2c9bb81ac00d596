"""The values that the keys of a preset and the axes of the command line may have. Imports no torch."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_args

from bench.sweep.axes import Block
from bench.types import Device, Mode, Precision
from resnet.models.table import NETWORKS, network_of
from resnet.paths import PATHS_BY_NAME

SELECTORS = ("all", "capable")


@dataclass(frozen=True, slots=True)
class Rule:
    """The values that a key may have, for the check and for the person."""

    accepts: Callable[[Any], bool]
    allowed: str


def _one_of(names: Iterable[Any]) -> Rule:
    choices = tuple(names)
    return Rule(choices.__contains__, ", ".join(map(str, choices)))


_SECONDS = Rule(lambda value: 0 < value < math.inf, "a number of seconds above 0")


RULES: dict[str, Rule] = {
    "summary": Rule(lambda text: bool(text.strip()) and "\n" not in text, "one line of text"),
    "budget_s": _SECONDS,
    "sweep": Rule(bool, "at least one [[sweep]] table"),
    "models": _one_of(NETWORKS),
    "modes": _one_of(get_args(Mode)),
    "precisions": _one_of(get_args(Precision)),
    "batch_sizes": Rule(lambda size: size >= 1, "whole numbers from 1"),
    "image_size": Rule(lambda size: size >= 1, "a whole number from 1"),
    "paths": Rule(
        lambda path: path in SELECTORS or path.removeprefix("-") in PATHS_BY_NAME,
        ", ".join((*SELECTORS, *PATHS_BY_NAME)) + ", or -NAME to leave one out",
    ),
    "device": _one_of(get_args(Device)),
    "confidence": Rule(lambda value: 0 < value < 1, "a number between 0 and 1"),
    "warmup_budget_s": _SECONDS,
    "sample_minimum_s": Rule(lambda value: 0 <= value < math.inf, "a number of seconds from 0"),
    "sample_budget_s": _SECONDS,
    "timeout_s": _SECONDS,
    "parity_steps": Rule(lambda value: value >= 1, "a whole number from 1"),
    "parity_budget_s": _SECONDS,
    "weights": Rule(lambda _: True, "the name of published weights, or the path of a state_dict file"),
    "seed": Rule(lambda value: value >= 0, "a whole number from 0"),
}


def why_refused(key: str, value: Any) -> str:  # noqa: ANN401 any value of the type that the key has
    """Why the key may not have the value; empty if it may."""
    values = value if isinstance(value, list | tuple) else (value,)
    refused = [item for item in values if not RULES[key].accepts(item)]
    if refused or not values:
        return f"{', '.join(map(repr, refused)) or 'an empty list'} is not allowed{allowed_values([key])}"
    return ""


def why_too_small(block: Block) -> str:
    """Why the images of a block are too small for one of its models; empty if they are not."""
    problems = (network_of(model).why_too_small(block.image_size) for model in block.models)
    return next(filter(None, problems), "")


def allowed_values(steps: list[str | int]) -> str:
    names = [step for step in steps if step in RULES]
    return f"; allowed: {RULES[str(names[-1])].allowed}" if names else ""
