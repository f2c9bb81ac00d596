"""Turns a row of PATHS into a program: the object that parity checks and the harness times."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from resnet.folded.fastest import choices
from resnet.folded.network import fold
from resnet.folded.products import fold_into_products
from resnet.fused.fuse import fuse
from resnet.paths import Path
from resnet.precision import AUTOCAST_DTYPE, Mode, Precision, set_product_precision

_CAPTURING = ("cuda",)  # types of device on which steps are captured
_GRAPH_WARMUP_STEPS = 3  # before capture, on a side stream: for cuDNN's search and the lazy state of the optimizer

LEARNING_RATE = 2e-3
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
LOSS_SCALE = 1024.0  # for fp16: small enough not to overflow, so that no measured step is skipped


class StepOutput(NamedTuple):
    """logits [N, classes]; loss [] in train mode, None in infer mode."""

    logits: Tensor
    loss: Tensor | None


class Program:
    """One path, ready to run steps of one mode, precision and batch shape on one device.

    Attributes:
        model: holds the live parameters and buffers that steps update.
        optimizer: SGD with momentum in train mode, else None.
    """

    def __init__(self, path: Path, model: nn.Module, *, mode: Mode, precision: Precision, device: str) -> None:
        """Take `model` over: it is moved, cast and trained in place."""
        set_product_precision(precision)
        self.path, self.mode, self.precision, self.device = path, mode, precision, device
        dtype = torch.float64 if precision == "fp64" else torch.float32
        layout = torch.channels_last if path.channels_last else torch.contiguous_format
        model = model.to(device=device, dtype=dtype, memory_format=layout).train(mode == "train")  # type: ignore[call-overload]
        self.layout = layout
        self.model: nn.Module = model
        if path.fold:
            self.model = (fold_into_products if path.products else fold)(model, AUTOCAST_DTYPE.get(precision, dtype))
        elif path.fuse:
            self.model = fuse(model, rebuild=path.rebuild, gram=path.gram)
        self.network = self._compile()
        self.optimizer: torch.optim.SGD | None = None
        if mode == "train":
            self.optimizer = torch.optim.SGD(
                self.model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True
            )
        self.scaler = torch.amp.GradScaler(
            device, init_scale=LOSS_SCALE, enabled=precision == "fp16" and mode == "train"
        )
        self._fresh_scaler = self.scaler.state_dict()
        self._graph: _CapturedStep | None = None

    def place(self, images: Tensor) -> Tensor:
        """Convert images [N, C, H, W] to the device, dtype and memory format of this path."""
        dtype = torch.float64 if self.precision == "fp64" else torch.float32
        return images.to(device=self.device, dtype=dtype, memory_format=self.layout)

    def step(self, images: Tensor, labels: Tensor) -> StepOutput:
        """Run one whole step on placed images [N, C, H, W] and labels [N] (int64).

        The first call compiles, searches and captures. The output is valid until the next call.
        """
        if not (self.path.cuda_graph and self.device in _CAPTURING):
            return self._step(images, labels)
        if self._graph is None:
            self._graph = _CapturedStep(self, images, labels)
        return self._graph.replay(images, labels)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run the forward part of a step, uncaptured: the loss [] in train mode, logits [N, classes] in infer mode."""
        logits = self._logits(images)
        return self._loss(logits, labels) if self.mode == "train" else logits

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the parameters and buffers of `state` in place, and reset the optimizer and the loss scale."""
        live = self.model.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, value in state.items():
                live[name].copy_(value)
            for slot in self.optimizer.state.values() if self.optimizer else ():
                slot["momentum_buffer"].zero_()  # zero momentum gives the same first step as none
        self.scaler.load_state_dict(self._fresh_scaler)

    def gradients(self) -> dict[str, Tensor | None]:
        """Return the gradients of the last step by parameter name; the fused optimizer has removed the loss scale."""
        return {name: parameter.grad for name, parameter in self.model.named_parameters()}

    @property
    def choices(self) -> dict[str, str]:
        """The ways that the path chose by measuring at its first call, by module name."""
        return choices(self.model)

    def _step(self, images: Tensor, labels: Tensor) -> StepOutput:
        if self.path.compile_mode is not None:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        if self.optimizer is None:
            return StepOutput(self._logits(images), None)
        self.optimizer.zero_grad(set_to_none=True)
        logits = self._logits(images)
        loss = self._loss(logits, labels)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return StepOutput(logits, loss)

    def _logits(self, images: Tensor) -> Tensor:
        with torch.inference_mode(self.mode == "infer"), self._autocast():
            logits: Tensor = self.network(images)
        return logits

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits if self.precision == "fp64" else logits.float(), labels)

    def _compile(self) -> nn.Module:
        if self.path.compile_mode is None:
            return self.model
        options = torch._inductor.list_mode_options(self.path.compile_mode)
        if self.path.freeze and self.mode == "infer":
            options = {**options, "freezing": True}
        return torch.compile(self.model, dynamic=False, options=options)  # type: ignore[return-value]

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        dtype = AUTOCAST_DTYPE.get(self.precision)
        if dtype is None or self.path.fold:  # a folded network runs in its dtype throughout
            return nullcontext()
        # the cache must not hold captured casts after the capture
        return torch.autocast(self.device, dtype=dtype, cache_enabled=not self.path.cuda_graph)


class _CapturedStep:
    """A whole step as one CUDA graph over static inputs (https://docs.pytorch.org/docs/stable/notes/cuda.html).

    Capturing leaves parameters, buffers and optimizer as they were: the warm-up steps are undone.
    """

    def __init__(self, program: Program, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.clone(), labels.clone()
        before = {name: value.clone() for name, value in program.model.state_dict().items()}
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_GRAPH_WARMUP_STEPS):
                program._step(self.images, self.labels)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = program._step(self.images, self.labels)
        program.load(before)

    def replay(self, images: Tensor, labels: Tensor) -> StepOutput:
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.output
