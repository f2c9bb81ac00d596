"""CUDA graphs played on the CPU, so that captured steps are tested without a GPU.

As on the device, a capture does not execute what it records, a replay works on the very tensors of the capture, and
asking for a value while capturing is an error. What only a device can show (streams, the private pool) is not played.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnet import program


class Call(NamedTuple):
    """One operator of a capture, with the very tensors that it took and made."""

    operator: torch._ops.OpOverload
    arguments: tuple[object, ...]
    options: dict[str, object]
    made: object


class GraphOnCpu:
    """In place of `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def replay(self) -> None:
        with torch.inference_mode():
            for call in self.calls:
                made = call.operator(*call.arguments, **call.options)
                for old, new in zip(_tensors(call.made), _tensors(made), strict=True):
                    if _storage(old) != _storage(new):  # else it is a view, or made in place
                        old.copy_(new)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operators; running them gives the tensors, and what was there before is put back by `undo`."""

    def __init__(self, graph: GraphOnCpu) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = graph
        self.own: set[int] = set()  # storages made in the capture
        self.found: dict[int, tuple[Tensor, Tensor]] = {}  # storages from before it: a tensor, and what it held

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """As the base class wants it."""
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            if _storage(tensor) not in self.own | self.found.keys():
                self.found[_storage(tensor)] = (tensor.detach(), tensor.detach().clone())
        made: object = func(*args, **kwargs)
        self.own |= {_storage(tensor) for tensor in _tensors(made)} - self.found.keys()
        self.graph.calls.append(Call(func, args, kwargs, made))
        return made

    def undo(self) -> None:
        with torch.inference_mode():
            for tensor, held in self.found.values():
                tensor.copy_(held)


@contextmanager
def _capture(graph: GraphOnCpu, stream: object = None) -> Iterator[None]:
    del stream  # they are not played
    recorder = _Recorder(graph)
    with recorder:
        yield
    recorder.undo()


@pytest.fixture
def graphs_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.cuda`'s streams and graphs, played."""

    class Stream:
        def wait_stream(self, other: "Stream") -> None:
            pass

    monkeypatch.setattr(program, "_CAPTURING", ("cuda", "cpu"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", GraphOnCpu)
    monkeypatch.setattr(torch.cuda, "graph", _capture)


def _tensors(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
