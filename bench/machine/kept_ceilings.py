"""Measured ceilings of a device, kept per machine between runs, and what they say of a precision.

Imports no torch.

The files lie in RESBENCH_CACHE_DIR, or else in the user's cache directory (XDG_CACHE_HOME, `~/.cache`), one for each
set of facts that decide the rates. Without such a directory every run measures anew, and so does a run that beats what
is kept: it was measured beside other work.
"""

import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import msgspec

from bench.render.text import rate
from bench.types import Ceilings, Device, Environment, Precision

KEPT = timedelta(days=30)  # the neighbours of a virtual machine change, and so may the machine itself
_NOISE = 0.1  # rates of one machine differ by some per cent from call to call
# Facts that do not change how fast copies and products are. Any other that differs is another machine.
_INDIFFERENT = {"resbench", "revision", "python", "triton", "torchvision", "cpp_compiler", "weights_sha256"}
_DEVICE_WORDS: dict[str, str] = {"cpu": "CPU", "cuda": "GPU"}


def why_emulated(precision: Precision, ceilings: Ceilings, device: Device) -> str:
    """Why a measurement of this precision on this device tells nothing: its products are slower than those of fp32.

    Empty where they are not, or not by more than noise, or where either rate is not known.
    """
    rates = ceilings.matmul_flops_per_s
    own, fp32 = rates.get(precision), rates.get("fp32")
    if own is None or fp32 is None or own >= (1 - _NOISE) * fp32:
        return ""
    return (
        f"{precision} is emulated on this {_DEVICE_WORDS[device]}: {rate(own, 'FLOP/s')}, fp32 has "
        f"{rate(fp32, 'FLOP/s')}; --precisions {precision} measures it all the same"
    )


def told(ceilings: Ceilings) -> str:
    """The rates in a line."""
    products = [f"{name} {rate(flops, 'FLOP/s')}" for name, flops in ceilings.matmul_flops_per_s.items()]
    return f"a large copy {rate(ceilings.copy_bytes_per_s, 'B/s')}; large matrix products {', '.join(products)}"


def kept(environment: Environment) -> Ceilings | None:
    """The ceilings that an earlier run measured on this machine within `KEPT`, or None."""
    file = _file(environment)
    with suppress(OSError, ValueError):  # ValueError: no JSON, or another version's
        if file is not None:
            ceilings = msgspec.json.decode(file.read_bytes(), type=Ceilings)
            if datetime.now(UTC) - datetime.fromisoformat(ceilings.measured_at) < KEPT:
                return ceilings
    return None


def keep(environment: Environment, ceilings: Ceilings) -> None:
    """Keep them for later runs on this machine, where there is a place for it."""
    file = _file(environment)
    if file is None:
        return
    with suppress(OSError):  # then the next run measures them again
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(f".{os.getpid()}")
        half.write_bytes(msgspec.json.encode(ceilings))
        half.replace(file)


def _file(environment: Environment) -> Path | None:
    folder = _folder()
    facts = {name: value for name, value in sorted(environment.facts.items()) if name not in _INDIFFERENT}
    return folder / f"ceilings-{sha256(msgspec.json.encode(facts)).hexdigest()[:16]}.json" if folder else None


def _folder() -> Path | None:
    """The folder of kept ceilings; None where there is no home."""
    if own := os.environ.get("RESBENCH_CACHE_DIR"):
        return Path(own)
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resbench"
    return None
