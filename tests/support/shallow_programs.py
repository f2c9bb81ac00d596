"""A narrow network of one block a stage and its programs, for tests of paths: compilation is quick."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from resnet.models.build import build_model
from resnet.models.resnet import ResNet
from resnet.paths import PATHS_BY_NAME, Path
from resnet.precision import Mode, Precision
from resnet.program import Program
from tests.support.narrow_networks import NARROW10

CLASSES = 10
EAGER = PATHS_BY_NAME["eager"]


@pytest.fixture
def flags_restored() -> Iterator[None]:
    matmul = torch.get_float32_matmul_precision()
    benchmark, tf32 = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, tf32


def make_model() -> ResNet:
    torch.manual_seed(0)
    model = build_model(NARROW10, num_classes=CLASSES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


def make_batch(seed: int = 1, device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    return images.to(device), torch.randint(CLASSES, (2,), generator=generator).to(device)


def make_program(path: Path, mode: Mode, precision: Precision = "fp32", device: str = "cpu") -> Program:
    return Program(path, make_model(), mode=mode, precision=precision, device=device)


def run(program: Program, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    images, labels = make_batch(seed, program.device)
    return program.step(program.place(images), labels)


def relative(out: Tensor, ref: Tensor) -> float:
    out, ref = out.detach().double(), ref.detach().double()
    return float((out - ref).norm() / ref.norm())
