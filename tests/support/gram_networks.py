"""Small networks of bottleneck blocks, for the tests of blocks that are one node each."""

import copy
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from resnet.fused.fuse import fuse
from resnet.fused.gram import GramBottleneck
from tests.support.shallow_programs import make_batch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Narrow(nn.Module):
    """A resnet50 in little: both kinds of blocks, and few channels, since the interpreter takes time for each value."""

    def __init__(self) -> None:
        super().__init__()
        block = torchvision.models.resnet.Bottleneck

        def shortcut(channels: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(16, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.layer1 = nn.Sequential(block(16, 4))
        self.layer2 = nn.Sequential(block(16, 8, stride=2, downsample=shortcut(32, 2)), block(32, 8))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, 64, 64] -> logits [N, 10]."""
        logits: Tensor = self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))
        return logits


def network(make: Callable[[], nn.Module] = Narrow) -> nn.Module:
    torch.manual_seed(0)
    model = make().to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model  # type: ignore[no-any-return]


def block(name: str = "layer2.1") -> tuple[nn.Module, nn.Module, Tensor]:
    """A block of a network as one node, the plain one over parameters of its own, and an input that fits."""
    plain = network()
    of = fuse(copy.deepcopy(plain), gram=True).get_submodule(name)
    assert isinstance(of, GramBottleneck)
    x = torch.randn(4, of.conv1.in_channels, 8, 8, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    return of, plain.get_submodule(name), x.contiguous(memory_format=torch.channels_last)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Four images: two leave so few values a channel in the last stage that even fp64 diverges."""
    x, labels = map(torch.cat, zip(*(make_batch(2 * seed + half, DEVICE) for half in (0, 1)), strict=True))
    return x.contiguous(memory_format=torch.channels_last), labels
