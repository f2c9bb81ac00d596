"""How the kernel bench times calls."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.kernels.operands import launches, operands_of
from bench.kernels.timing import Rotation, Timed, backward_calls, by_turns, copy_calls, launch_calls, prepared, sets
from bench.kernels.types import Contender, Op
from bench.types import Device
from kernels.table import KERNELS_BY_NAME

DEVICE: Device = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Op(form="bn+relu", shape=(2, 16, 8, 8), dtype="fp32", mode="train")


def test_rotation_keeps_each_result_until_its_turn_comes_again() -> None:
    results = iter([[number] for number in range(5)])
    taken: list[int] = []

    def call(place: int) -> list[int]:
        taken.append(place)
        return next(results)

    rotation = Rotation([partial(call, place) for place in range(3)])
    for _ in range(5):
        rotation()
    assert taken == [0, 1, 2, 0, 1]
    assert rotation._results == [[3], [4], [2]]


@pytest.mark.parametrize(("set_bytes", "cache", "number"), [(100, 10, 2), (10, 10, 3), (3, 10, 8), (1, 10**6, 256)])
def test_other_sets_fill_the_cache_twice_between_two_uses_of_one(set_bytes: int, cache: int, number: int) -> None:
    assert sets(set_bytes, cache) == number


def test_copies_move_so_many_bytes_each_in_memory_of_its_own() -> None:
    calls: Any = copy_calls(3 * 2**20, 4, DEVICE)
    pairs = [(call.func.__self__, *call.args) for call in calls]
    assert len({tensor.data_ptr() for pair in pairs for tensor in pair}) == 8
    for (target, source), call in zip(pairs, calls, strict=True):
        call()
        assert torch.equal(target, source)
        assert target.nbytes + source.nbytes == 3 * 2**20


def test_a_launch_gets_tensors_like_those_that_were_recorded() -> None:
    taken: list[tuple[Any, ...]] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **options: taken.append((grid, arguments, options))

    asked = launches(replace(SMALL, form="stem"), "sm_90")["backward"][0].call
    for call in launch_calls(replace(asked, kernel=Kernel()), 2, DEVICE):
        call()
    given = [tensor for _, arguments, _ in taken for tensor in arguments if isinstance(tensor, Tensor)]
    wanted = [tensor for tensor in asked.arguments if isinstance(tensor, Tensor)]
    assert [(grid, options) for grid, _, options in taken] == [(asked.grid, asked.options)] * 2
    assert [(t.shape, t.stride(), t.dtype) for t in given] == [(t.shape, t.stride(), t.dtype) for t in wanted] * 2
    assert len({tensor.data_ptr() for tensor in given}) == len(given), "each in memory of its own"
    assert all(tensor.count_nonzero() for tensor in given), "never zeros"
    others = [[value for value in arguments if not isinstance(value, Tensor)] for _, arguments, _ in taken]
    assert others == [[value for value in asked.arguments if not isinstance(value, Tensor)]] * 2


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_graph_makes_every_call_and_takes_a_while() -> None:
    """What is captured on CUDA, and that a replay does all of it."""
    targets = [torch.zeros(4) for _ in range(3)]
    calls = [partial(target.add_, number) for number, target in enumerate(targets)]
    timed = prepared(calls, "cuda", 0.0002)  # s, of one call
    assert timed.calls == 12, "four times each set: 2.4 ms"
    for target in targets:
        target.zero_()
    timed.step()
    assert [target[0].item() for target in targets] == [0.0, 4.0, 8.0]
    assert prepared(calls, "cuda", 1.0).calls == 3, "no set is left out"


@pytest.mark.usefixtures("graphs_on_cpu")
@pytest.mark.parametrize("form", ["bn+residual+relu", "stem"])
def test_a_graph_of_backward_calls_finds_what_forward_kept(form: str) -> None:
    op = replace(SMALL, form=form)
    operands = [operands_of(op, "cpu", seed=seed) for seed in (1, 2)]
    calls = backward_calls(KERNELS_BY_NAME[form].oracle, operands, training=True)
    expected = [call() for call in calls]
    timed = prepared(calls, "cuda", 1.0)
    timed.step()
    rotation = timed.step.args[1]  # type: ignore[attr-defined]
    for gradients, wanted in zip(rotation._results, expected, strict=True):
        torch.testing.assert_close(gradients, wanted)


def test_turns_give_the_time_of_one_call() -> None:
    """Every contender has a turn in every round."""
    steps: Counter[str] = Counter()
    contenders: dict[Contender, Timed] = {
        "eager": Timed(step=partial(steps.update, ["eager"])),
        "copy": Timed(step=partial(steps.update, ["copy"]), calls=10**6),
    }
    rounds = by_turns(contenders, "cpu", 0.05)
    assert len(rounds["eager"]) == len(rounds["copy"]) > 1
    assert max(rounds["copy"][0]) < min(rounds["eager"][0]) / 100, "its step makes a million calls"
    for name, turns in rounds.items():
        assert steps[name] == sum(map(len, turns)) + 3, "and the rehearsal"
