"""Journals that the tests write."""

from pathlib import Path

from bench.record.journal import JOURNAL_NAME, Journal
from bench.record.lines import JournalRecord
from bench.types import (
    Case,
    Ceilings,
    Environment,
    Plan,
    Result,
    Settings,
    Status,
)

CASES = tuple(
    Case(model="resnet18", mode="infer", precision="fp32", batch_size=size, image_size=64, path="eager", device="cpu")
    for size in (1, 2, 3)
)
PLAN = Plan(name="test", cases=CASES, settings=Settings(), command="resbench run")
HERE = Environment(facts={"cpu": "one"})
ELSEWHERE = Environment(facts={"cpu": "another"})
CEILINGS = Ceilings(copy_bytes_per_s=1e9, matmul_flops_per_s={"fp32": 1e12})


def result(number: int, status: Status = Status.VALID, environment: Environment = HERE, reason: str = "") -> Result:
    return Result(case=CASES[number], status=status, reason=reason, environment_hash=environment.hash)


def write(directory: Path, *records: JournalRecord, plan: Plan = PLAN) -> bytes:
    with Journal.create(directory, plan) as journal:
        for record in records:
            journal.append(record)
    return (directory / JOURNAL_NAME).read_bytes()
