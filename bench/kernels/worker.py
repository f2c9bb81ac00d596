"""The worker side of `resbench kernels`: the machine and the ops to measure, then op by op parity and times."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter

import torch
from triton.errors import TritonError

from bench.kernels.operands import (
    Function,
    Launched,
    directions,
    floor_bytes,
    function_of,
    launches,
    middle_convolution,
    operands_of,
    oracle_of,
)
from bench.kernels.ops import filled, ops
from bench.kernels.parity import check
from bench.kernels.timing import (
    Calls,
    Timed,
    backward_calls,
    by_turns,
    cache_bytes,
    compiled,
    copy_calls,
    forward_calls,
    launch_calls,
    prepared,
    quiet_device,
    rotated,
    sets,
)
from bench.kernels.types import Contender, Direction, KernelRow, Op, Outcome, Request, Survey
from bench.machine import environment
from bench.machine.ceilings import measure_ceilings
from bench.machine.requirements import INTERPRETED_REASON
from bench.types import Device
from bench.workers.child import announce, serve
from bench.workers.errors import describe
from kernels.launch.runtime import INTERPRETED, architecture

SECONDS: dict[Device, float] = {"cuda": 0.3, "cpu": 0.5}  # of sampling, per row
COUNTED_ARCHITECTURE = "sm_90"  # whose launches tell the bytes where there is no GPU

Functions = Mapping[Contender, Function]
Makers = Mapping[Contender, Callable[[], Calls]]


def survey(request: Request) -> Survey:
    """The machine, and the ops to be measured on it.

    Raises:
        ValueError: why the request cannot be met.
    """
    device = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu" and not INTERPRETED:
        raise ValueError("on the CPU the kernels need Triton's interpreter: set TRITON_INTERPRET=1 in the environment")
    facts = environment.collect(device)
    complete = filled(request, device)
    op_list = ops(complete)
    announce("a large copy")
    multiplied = any(op.block for op in op_list) and not INTERPRETED
    return Survey(
        request=complete,
        device=device,
        environment=facts,
        ceilings=measure_ceilings(device, complete.dtypes if multiplied else ()),
        cache_bytes=cache_bytes(device),
        architecture=COUNTED_ARCHITECTURE if INTERPRETED else architecture().name,
        seconds=SECONDS[device],
        why_untimed=INTERPRETED_REASON if INTERPRETED else "",
        ops=op_list,
    )


def serve_ops(where: Survey, pending: tuple[Op, ...]) -> None:
    """Reply to each question of the parent with the outcome of the next op."""
    outcomes = (measure(op, where) for op in pending)
    with quiet_device(where.device):
        serve(lambda: next(outcomes))


def measure(op: Op, where: Survey) -> Outcome:
    """Parity, then times where it passed. What breaks a contender is part of its row; what breaks more is raised.

    A block whose kernels cannot be timed is only checked: its convolutions take too long for what they would tell.
    """
    began = perf_counter()
    verdict = check(op, where.device)
    oracle = oracle_of(op)
    functions: Functions = {"fused": function_of(op), "eager": oracle, "compile": compiled(oracle)}
    rows: list[KernelRow] = []
    with torch.set_grad_enabled("backward" in directions(op)):
        for direction, launched in launches(op, where.architecture if where.why_untimed else None).items():
            whole, *parts = _rows(op, direction, launched)
            if op.block and where.why_untimed:
                whole, *parts = (replace(row, untimed={"fused": where.why_untimed}) for row in (whole, *parts))
            elif verdict.passed:
                whole = _sampled(whole, _calls(op, direction, functions, where), where)
                parts = [_launch_sampled(part, launch, where) for part, launch in zip(parts, launched, strict=True)]
            rows += [whole, *parts]
    return Outcome(op=op, check=verdict, rows=tuple(rows), seconds=perf_counter() - began)


def _rows(op: Op, direction: Direction, launched: Sequence[Launched]) -> list[KernelRow]:
    """The whole call, then each of its launches, without times."""
    between = middle_convolution(op, direction)
    row = KernelRow(
        direction=direction,
        tensor_bytes=operands_of(op, "meta").x.nbytes,
        bytes=sum(launch.bytes for launch in launched) + between.read + between.written,
        flops=sum(launch.flops for launch in launched) + between.flops,
        floor_bytes=floor_bytes(op, direction),
    )
    return [
        row,
        *(
            replace(row, launch=launch.kind, bytes=launch.bytes, flops=launch.flops, floor_bytes=None)
            for launch in launched
        ),
    ]


def _calls(op: Op, direction: Direction, functions: Functions, where: Survey) -> Makers:
    """The makers of each contender's calls, all on the same operands."""
    operands = operands_of(op, where.device)
    read = sum(tensor.nbytes for tensor in operands.differentiable())
    copies = rotated(operands, sets(read, where.cache_bytes))
    make = forward_calls if direction == "forward" else backward_calls
    return {name: partial(make, function, copies, training=op.mode == "train") for name, function in functions.items()}


def _launch_sampled(row: KernelRow, launch: Launched, where: Survey) -> KernelRow:
    if where.why_untimed:
        return replace(row, untimed={"fused": where.why_untimed})
    number = sets(row.bytes, where.cache_bytes)
    return _sampled(row, {"fused": partial(launch_calls, launch.call, number, where.device)}, where)


def _sampled(row: KernelRow, makers: Makers, where: Survey) -> KernelRow:
    """The row with the times of its contenders and of a plain copy of its bytes."""
    number = sets(row.bytes // 2, where.cache_bytes)
    makers = {**makers, "copy": partial(copy_calls, row.bytes, number, where.device)}
    untimed = {name: reason for name, reason in _untimed(where).items() if name in makers}
    timed: dict[Contender, Timed] = {}
    failures: dict[Contender, str] = {}
    for name, make in makers.items():
        if name not in untimed:
            try:
                timed[name] = prepared(make(), where.device, row.bytes / where.ceilings.copy_bytes_per_s)
            except (RuntimeError, TritonError) as error:
                failures[name] = describe(error)
    rounds = by_turns(timed, where.device, where.seconds)
    return replace(row, rounds=rounds, untimed=untimed, failures=failures)


def _untimed(where: Survey) -> dict[Contender, str]:
    """The contenders that this machine cannot time, and why."""
    reasons: dict[Contender, str] = {"fused": where.why_untimed} if where.why_untimed else {}
    if where.device == "cpu" and environment.cpp_compiler() is None:
        reasons["compile"] = "torch.compile needs a C++ compiler on CPU: install g++, or name one in CXX"
    return reasons
