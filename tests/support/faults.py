"""Programs that are wrong, each in its own way, for the gate to reject."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from bench.types import Mode, Precision
from resnet.models.resnet import BasicBlock, ResNet
from resnet.program import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Program, StepOutput
from tests.support.other_programs import Edit

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
MODES: tuple[Mode, ...] = ("train", "infer")


class Zeros(Program):
    def step(self, images: Tensor, labels: Tensor) -> StepOutput:
        logits, loss = super().step(images, labels)
        return StepOutput(torch.zeros_like(logits), loss)


class Stale(Program):
    previous: Tensor | None = None

    def step(self, images: Tensor, labels: Tensor) -> StepOutput:
        logits, loss = super().step(images, labels)
        stale, self.previous = self.previous, logits
        return StepOutput(logits if stale is None else stale, loss)


class NanOutput(Program):
    def step(self, images: Tensor, labels: Tensor) -> StepOutput:
        logits, loss = super().step(images, labels)
        logits = logits.detach().clone()
        logits[-1, -1] = torch.nan
        return StepOutput(logits, loss)


class WrongShape(Program):
    def step(self, images: Tensor, labels: Tensor) -> StepOutput:
        logits, loss = super().step(images, labels)
        return StepOutput(logits[None], loss)


class ShuffledLabels(Program):
    def step(self, images: Tensor, labels: Tensor) -> StepOutput:
        return super().step(images, labels.roll(1))


class RunningStatistics(Program):
    """Evaluation mode while training."""

    def step(self, images: Tensor, labels: Tensor) -> StepOutput:
        self.model.eval()
        return super().step(images, labels)


class BatchStatistics(Program):
    """Training mode while inferring."""

    def step(self, images: Tensor, labels: Tensor) -> StepOutput:
        self.model.train()
        return super().step(images, labels)


class LateBuffers(Program):
    """Running statistics become what they were to be one step before."""

    late: ClassVar[dict[str, Tensor]] = {}

    def step(self, images: Tensor, labels: Tensor) -> StepOutput:
        output = super().step(images, labels)
        now = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self.late.get(name, buffer))
        self.late = now  # type: ignore[misc]
        return output


class KeptGradients(Program):
    """`zero_grad` forgotten."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        assert self.optimizer is not None
        self.optimizer.zero_grad = lambda **_: None  # type: ignore[method-assign]


class Optimizer(torch.optim.SGD):
    """SGD as it should be, written out, for faults to be put in."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is None:
                continue
            slot = self.state[parameter]
            before = slot.setdefault("momentum_buffer", torch.zeros_like(parameter))
            gradient = parameter.grad + self.decay() * parameter
            after = self.momentum(slot) * before + gradient
            parameter.sub_(LEARNING_RATE * self.velocity(before, after))
            slot["momentum_buffer"] = after

    def decay(self) -> float:
        return WEIGHT_DECAY

    def momentum(self, slot: dict[str, Tensor]) -> float:  # noqa: ARG002
        return MOMENTUM

    def velocity(self, before: Tensor, after: Tensor) -> Tensor:  # noqa: ARG002
        return after


class LateMomentum(Optimizer):
    def velocity(self, before: Tensor, after: Tensor) -> Tensor:  # noqa: ARG002
        return before


class NoMomentum(Optimizer):
    def momentum(self, slot: dict[str, Tensor]) -> float:  # noqa: ARG002
        return 0.0


class NoDecay(Optimizer):
    def decay(self) -> float:
        return 0.0


class WrongDecay(Optimizer):
    def decay(self) -> float:
        return -WEIGHT_DECAY


class OtherOptimizer(Program):
    kind: type[Optimizer] = Optimizer

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self.optimizer = self.kind(self.model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


def with_optimizer(kind: type[Optimizer]) -> type[Program]:
    return type(kind.__name__, (OtherOptimizer,), {"kind": kind})


class WithoutShortcut(BasicBlock):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class OtherBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:  # noqa: ANN401
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return gradients[0] * ctx.factor, None


def skip_shortcut(name: str, model: ResNet) -> None:
    model.get_submodule(name).__class__ = WithoutShortcut


def set_norms(model: ResNet, only: str = "", **values: float) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and (not only or name == only):
            for key, value in values.items():
                setattr(module, key, value)


def scale_backward(name: str, factor: float, model: ResNet) -> None:
    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return OtherBackward.apply(output, factor)  # type: ignore[no-any-return]

    model.get_submodule(name).register_forward_hook(hook)


def freeze(name: str, model: ResNet) -> None:
    model.get_parameter(name).requires_grad_(False)


def zero_gradient(name: str, model: ResNet) -> None:
    model.get_parameter(name).register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]


def nan_gradient(name: str, model: ResNet) -> None:
    def spoil(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[0] = torch.nan
        return gradient

    model.get_parameter(name).register_hook(spoil)  # type: ignore[no-untyped-call]


def running_statistics(name: str, model: ResNet) -> None:
    """One layer stays in evaluation mode."""
    norm = model.get_submodule(name)
    norm.register_forward_pre_hook(lambda module, _: module.eval() and None)


def biased_variance(model: ResNet) -> None:
    """running_var from the sum of squares over n, where it is to be over n - 1."""

    def before(norm: nn.BatchNorm2d, _inputs: tuple[Tensor]) -> None:
        norm.kept = norm.running_var.clone()  # type: ignore[union-attr]

    def after(norm: nn.BatchNorm2d, inputs: tuple[Tensor], _output: Tensor) -> None:
        count = inputs[0].numel() / norm.num_features
        variance = norm.running_var.data  # type: ignore[union-attr]  # unseen by autograd, which has kept it
        variance.sub_((variance - 0.9 * norm.kept) / count)  # type: ignore[operator]

    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_pre_hook(before)
            norm.register_forward_hook(after)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault, and the first tensor that parity must call wrong, by mode."""

    name: str
    first: dict[Mode, str]  # with a * or [] where another machine's rounding may make another layer the first
    first_bf16: str = ""  # where rounding hides what fp32 sees first
    steps: int = 1  # of each check, until it shows
    program: type[Program] = Program
    edit: Edit = lambda _: None
    unseen_bf16: str = ""  # why it cannot be seen there at all
    precisions: tuple[Precision, ...] = PRECISIONS  # without one in which it is hardly larger than what passes

    def first_tensor(self, mode: Mode, precision: Precision) -> str:
        return (precision == "bf16" and self.first_bf16) or self.first[mode]


FAULTS = (
    Fault(name="zeros", program=Zeros, first={"train": "output@1", "infer": "output@1"}),
    Fault(name="stale output", program=Stale, first={"train": "output@1", "infer": "output@1"}),
    Fault(name="NaN in one element of the output", program=NanOutput, first={"train": "output@1", "infer": "output@1"}),
    Fault(name="output of the wrong shape", program=WrongShape, first={"train": "output@1", "infer": "output@1"}),
    Fault(
        name="skipped residual",
        edit=partial(skip_shortcut, "layer2.1"),
        first={"train": "buffer:layer3.0.bn1.running_mean@1", "infer": "output@1"},
    ),
    Fault(
        name="eps 3e-3 everywhere",
        edit=partial(set_norms, eps=3e-3),
        first={"train": "buffer:layer1.0.bn1.running_mean@1", "infer": "output@1"},
    ),
    Fault(
        name="eps 5e-4 in one layer",
        edit=partial(set_norms, only="layer3.0.bn1", eps=5e-4),
        first={"train": "buffer:layer3.0.bn2.running_mean@1", "infer": "output@1"},
        unseen_bf16="moves the output by 3e-4, and rounding moves it by 8e-3",
    ),
    Fault(name="batch statistics in inference", program=BatchStatistics, first={"infer": "output@1"}),
    Fault(
        name="running statistics in training",
        program=RunningStatistics,
        first={"train": "buffer:bn1.running_mean@1"},
    ),
    Fault(
        name="running statistics in training, one layer",
        edit=partial(running_statistics, "layer3.0.bn1"),
        first={"train": "buffer:layer3.0.bn1.running_mean@1"},
    ),
    Fault(
        name="momentum of running statistics 0.2",
        edit=partial(set_norms, momentum=0.2),
        first={"train": "buffer:bn1.running_mean@1"},
    ),
    Fault(
        name="running statistics a step late",
        program=LateBuffers,
        first={"train": "buffer:bn1.running_mean@1"},
    ),
    Fault(
        name="running_var biased",
        edit=biased_variance,
        first={"train": "buffer:bn1.running_var@1"},  # n is 4096 there
        first_bf16="buffer:layer[23].*.running_var@1",  # n is 256 and 64
    ),
    Fault(name="labels shuffled", program=ShuffledLabels, first={"train": "loss@1"}, first_bf16="grad:fc.weight@1"),
    Fault(
        name="gradient missing",
        edit=partial(freeze, "layer3.0.conv2.weight"),
        first={"train": "grad:layer3.0.conv2.weight@1"},
    ),
    Fault(
        name="gradient zero",
        edit=partial(zero_gradient, "layer3.0.bn2.bias"),
        first={"train": "grad:layer3.0.bn2.bias@1"},
    ),
    Fault(
        name="NaN in one element of a gradient",
        edit=partial(nan_gradient, "layer3.0.conv2.weight"),
        first={"train": "grad:layer3.0.conv2.weight@1"},
    ),
    Fault(
        name="gradient 5 % too long from one layer down",
        edit=partial(scale_backward, "layer4.0.conv2", 1.05),
        first={"train": "scale:layer4.0.conv2.weight@1"},
        unseen_bf16="eager's own gradients are off by 10 %",
    ),
    Fault(
        name="gradient of the wrong sign from one layer down",
        edit=partial(scale_backward, "layer4.0.conv2", -1.0),
        first={"train": "grad:layer4.0.conv2.weight@1"},
    ),
    Fault(name="gradients accumulated", program=KeptGradients, first={"train": "grad:fc.bias@1"}),
    Fault(name="momentum a step late", program=with_optimizer(LateMomentum), first={"train": "param:conv1.weight@1"}),
    Fault(
        name="no momentum",
        program=with_optimizer(NoMomentum),
        first={"train": "param:conv1.weight@2"},
        first_bf16="param:*@2",
        steps=2,
    ),
    Fault(
        name="no weight decay",
        program=with_optimizer(NoDecay),
        first={"train": "param:layer[34].*.bn1.bias@1"},  # where the gradient is small beside the decay
        precisions=("fp32",),
    ),
    Fault(
        name="weight decay of the wrong sign",
        program=with_optimizer(WrongDecay),
        first={"train": "param:layer[1234].*.bn1.bias@1"},
    ),
)
