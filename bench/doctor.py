"""What this machine can run and why not. Worker side: called through `bench.isolation`."""

from itertools import product
from typing import get_args

import torch

from bench import environment
from bench.provenance import told
from bench.requirements import why_unsupported, why_untimed
from bench.types import Case, Device, Mode, Precision
from resnet.paths import PATHS, Path

_MODEL, _BATCH_SIZE, _IMAGE_SIZE = "resnet18", 1, 224  # no requirement depends on them


def has_cuda() -> bool:
    """Whether torch finds a CUDA device."""
    return torch.cuda.is_available()


def examine() -> list[dict[str, object]]:
    """For each device that this machine has: `device`, `facts` and `cells`.

    A cell is a path, mode and precision with `reason`: why it cannot run here, or `untimed`: why it can only be
    checked; both empty where nothing is missing.
    """
    devices: list[Device] = ["cpu", "cuda"] if has_cuda() else ["cpu"]
    cells = list(product(PATHS, get_args(Mode), get_args(Precision)))
    return [
        {
            "device": device,
            "facts": told(environment.collect(device)),
            "cells": [_cell(device, path, mode, precision) for path, mode, precision in cells],
        }
        for device in devices
    ]


def _cell(device: Device, path: Path, mode: Mode, precision: Precision) -> dict[str, str]:
    case = Case(
        model=_MODEL,
        mode=mode,
        precision=precision,
        batch_size=_BATCH_SIZE,
        image_size=_IMAGE_SIZE,
        path=path.name,
        device=device,
    )
    reason = why_unsupported(case, path) or ""
    untimed = "" if reason else why_untimed(case, path)
    return {"path": path.name, "mode": mode, "precision": precision, "reason": reason, "untimed": untimed}
