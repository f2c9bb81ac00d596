"""The paths that this machine can run, and why not the others. Worker side: called through `bench.workers.parent`."""

from itertools import product
from typing import get_args

import torch

from bench.machine import ceilings, environment, kept_ceilings
from bench.machine.requirements import why_unsupported, why_untimed
from bench.machine.types import Examined
from bench.record.provenance import told
from bench.types import Case, Ceilings, Device, Mode, Precision
from resnet.models.table import NETWORKS
from resnet.paths import PATHS, Path

_NETWORK, _BATCH_SIZE = NETWORKS["resnet18"], 1  # no requirement that a device may lack depends on them


def has_cuda() -> bool:
    """Whether torch finds a CUDA device."""
    return torch.cuda.is_available()


def examine() -> list[Examined]:
    """Each device that this machine has. Its ceilings are measured now, and kept for later runs (`kept_ceilings`)."""
    devices: list[Device] = ["cpu", "cuda"] if has_cuda() else ["cpu"]
    return [_examined(device) for device in devices]


def _examined(device: Device) -> Examined:
    where = environment.collect(device)
    rates = ceilings.measure_ceilings(device)
    kept_ceilings.keep(where, rates)
    cells = product(PATHS, get_args(Mode), get_args(Precision))
    return Examined(
        device=device,
        facts=told(where),
        ceilings=rates,
        reaches=kept_ceilings.told(rates),
        cells=[_cell(device, rates, path, mode, precision) for path, mode, precision in cells],
    )


def _cell(device: Device, rates: Ceilings, path: Path, mode: Mode, precision: Precision) -> dict[str, str]:
    case = Case(
        model=_NETWORK.name,
        mode=mode,
        precision=precision,
        batch_size=_BATCH_SIZE,
        image_size=_NETWORK.height(None),
        path=path.name,
        device=device,
    )
    reason = why_unsupported(case, path) or ""
    untimed = "" if reason else why_untimed(case, path)
    emulated = "" if reason or untimed else kept_ceilings.why_emulated(precision, rates, device)
    reasons = {"reason": reason, "untimed": untimed, "emulated": emulated}
    return {"path": path.name, "mode": mode, "precision": precision} | reasons
