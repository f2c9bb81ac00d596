"""Builds networks by name."""

from importlib import import_module
from typing import get_args

from torch import nn

from resnet.models.resnet import BasicBlock, Bottleneck, ResNet, Version
from resnet.models.table import network_of


def build_network(name: str) -> nn.Module:
    """A network of the table, freshly initialised: fp32, on the default device, in training mode.

    It maps images (N, C, H, W) of its row's `input` to logits (N, `classes`).

    Args:
        name: a row of NETWORKS.

    Raises:
        ValueError: an unknown name.
    """
    module, _, function = network_of(name).factory.partition(":")
    network: nn.Module = getattr(import_module(module), function)(name)
    return network


def build_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    version: Version = "v1.5",
    zero_init_last_bn: bool = False,
) -> ResNet:
    """Build a freshly initialised reference network: fp32, on the default device, in training mode.

    The network is that of He et al., "Deep Residual Learning for Image Recognition" (2015), table 1, in plain PyTorch,
    initialised as in He et al., "Delving Deep into Rectifiers" (2015), equation 14. Names of modules are torchvision's,
    so that its state_dicts fit.

    Args:
        name: `resnet18`, `resnet34`, `resnet50`, `resnet101` or `resnet152`.
        num_classes: width of the logits.
        in_channels: channels of the images.
        version: where a bottleneck has its stride: the 3x3 convolution (v1.5) or the first 1x1 (v1). Basic blocks
            are the same in both.
        zero_init_last_bn: start every block as the identity (Goyal et al., 2017, section 5.1).

    Returns:
        A module that takes images [N, in_channels, H, W] to logits [N, num_classes], in the dtype of its weights.

    Raises:
        ValueError: an unknown name or version; a number of classes or channels below one.

    Examples:
        >>> import torch
        >>> from resnet import build_model
        >>> model = build_model("resnet18", num_classes=10)
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """
    if not network_of(name).is_reference:
        raise ValueError(f"{name} is no reference ResNet: build it with build_network")
    if version not in get_args(Version):
        raise ValueError(f"unknown version {version!r}: choose from {', '.join(get_args(Version))}")
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"{argument} must be at least 1, not {value}")
    model = ResNet(name, num_classes=num_classes, in_channels=in_channels, version=version)
    _initialise(model, zero_init_last_bn=zero_init_last_bn)
    return model


def _initialise(model: ResNet, *, zero_init_last_bn: bool) -> None:
    """Initialise by He et al., "Delving Deep into Rectifiers" (2015), equation 14; `fc` keeps PyTorch's default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if zero_init_last_bn:
        for module in model.modules():
            if isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
