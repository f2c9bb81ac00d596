"""Fuses the BatchNorms of residual networks, and undoes it: the same parameters, the same state_dict.

It supports the blocks and networks of `resnet.models.resnet` and of torchvision (where ResNet, ResNeXt and Wide ResNet
are one class), which have the same children. A fused module is the plain one with another class, so that parameters,
buffers, names and hooks stay where they are.
"""

import copy
import warnings
from collections.abc import Iterator

from torch import nn

from resnet.fused.batch_norm import FusedBatchNormAct2d, has_hooks
from resnet.fused.blocks import FusedBasicBlock, FusedBottleneck, FusedResNet
from resnet.fused.gram import GramBottleneck, obstacle

FUSED: dict[str, type[nn.Module]] = {
    f"{package}.{name}": fused
    for package in ("resnet.models.resnet", "torchvision.models.resnet")
    for name, fused in (("BasicBlock", FusedBasicBlock), ("Bottleneck", FusedBottleneck), ("ResNet", FusedResNet))
}
_FUSED_TYPES = tuple(set(FUSED.values()))
_PLAIN_TYPE = "_plain_type"  # attribute of a fused module


def fuse(model: nn.Module, *, rebuild: bool = False, gram: bool = False) -> nn.Module:
    """Return the same network with fused blocks: a new tree of modules over the same parameters and buffers.

    The fused network takes and gives what the plain one does, in training and evaluation; its BatchNorms are those of
    `FusedBatchNormAct2d`, with its errors, and it can be differentiated once. A module with anything that fusing would
    pass over (another normalisation, hooks on a ReLU, another pooling) stays plain.

    Args:
        model: a ResNet of `build_model` or of torchvision (ResNeXt and Wide ResNet too), or any module that holds their
            blocks. It is left as it is.
        rebuild: keep no outputs inside blocks for the backward pass, see `FusedBatchNormAct2d.into`.
        gram: make each bottleneck one node that never writes its widest tensors: statistics of its 1x1 convolutions
            come from Gram matrices of their inputs, as the head of `kernels/bottleneck/forward.py` derives. Bottlenecks
            that cannot be one node are fused layer by layer.

    Returns:
        The fused network. Optimizer steps on either of the two are seen by both.

    Raises:
        RuntimeError: the model holds a tensor that cannot be copied, one that autograd has computed.

    Warns:
        UserWarning: a module stays plain, or a bottleneck is fused layer by layer, each with its reason; or nothing in
            the model can be fused.

    Examples:
        >>> from resnet import build_model, fuse
        >>> model = build_model("resnet50")
        >>> fused = fuse(model, gram=True)
        >>> fused.fc.weight is model.fc.weight
        True
        >>> fused.state_dict().keys() == model.state_dict().keys()
        True
    """
    twin = _twin(model)
    unfused, layer_by_layer = [], []
    for name, module in twin.named_modules():
        fused = FUSED.get(f"{type(module).__module__}.{type(module).__qualname__}")
        if fused is None:
            continue
        reason = _obstacle(module, fused)
        if reason:
            unfused.append(f"{name or type(module).__name__} ({reason})")
        else:
            _become(module, fused, rebuild=rebuild)
            if gram and fused is FusedBottleneck:
                why = obstacle(module)
                if why:
                    layer_by_layer.append(f"{name or type(module).__name__} ({why})")
                else:
                    module.__class__, module.__dict__["rebuild"] = GramBottleneck, rebuild
    if not any(isinstance(module, _FUSED_TYPES) for module in twin.modules()):
        unfused.append(f"{type(model).__name__} (none of its modules is a block that fuse supports)")
    if unfused:
        warnings.warn(f"some modules are not fused: {', '.join(unfused)}", stacklevel=2)
    if layer_by_layer:
        warnings.warn(f"some bottleneck blocks are fused layer by layer: {', '.join(layer_by_layer)}", stacklevel=2)
    return twin


def unfuse(model: nn.Module) -> nn.Module:
    """The plain network again: a new tree of modules over the same parameters and buffers.

    Args:
        model: what `fuse` returned, or any module that holds such modules. It is left as it is, and plain modules stay
            as they are.

    Returns:
        The plain network, of the classes that `fuse` was given.

    Raises:
        RuntimeError: the model holds a tensor that cannot be copied, one that autograd has computed.

    Examples:
        >>> from resnet import build_model, fuse, unfuse
        >>> model = build_model("resnet18")
        >>> plain = unfuse(fuse(model))
        >>> type(plain) is type(model), plain.fc.weight is model.fc.weight
        (True, True)
    """
    twin = _twin(model)
    for module in twin.modules():
        plain = module.__dict__.pop(_PLAIN_TYPE, None)
        if plain is not None:
            module.__class__ = plain
            for name in ("activation", "rebuild"):
                module.__dict__.pop(name, None)
    return twin


def _twin(model: nn.Module) -> nn.Module:
    """Copy the modules, sharing parameters and buffers."""
    shared = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _become(module: nn.Module, fused: type[nn.Module], *, rebuild: bool) -> None:
    module.__dict__[_PLAIN_TYPE] = type(module)
    module.__class__ = fused
    for norm, activation in _norms(module):
        norm.__dict__ |= {_PLAIN_TYPE: type(norm), "activation": activation, "rebuild": rebuild}
        norm.__class__ = FusedBatchNormAct2d


def _norms(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the BatchNorms that a fused module calls itself, and the activation after each."""
    for name, child in module.named_children():
        if name.startswith("bn"):
            yield child, "relu"
        elif name == "downsample" and isinstance(child, nn.Sequential):
            yield child[1], "none"


def _obstacle(module: nn.Module, fused: type[nn.Module]) -> str:
    """Return why a module cannot be fused; empty if it can."""
    downsample = getattr(module, "downsample", None)
    if downsample is not None and not _is_projection(downsample):
        return "its shortcut is not a convolution and a BatchNorm"
    for norm, _ in _norms(module):
        if type(norm) is not nn.BatchNorm2d:
            return f"its normalisation is {type(norm).__name__}"
    if type(module.relu) is not nn.ReLU:
        return f"its activation is {type(module.relu).__name__}"
    if fused is FusedResNet and not _is_plain_pooling(module.maxpool):
        return "its pooling is not 3x3 with stride 2 and padding 1"
    passed_over = [child for name, child in module.named_modules() if name.split(".")[0] in _PASSED_OVER]
    if any(has_hooks(child) for child in [*passed_over, *(norm for norm, _ in _norms(module))]):
        return "it has hooks on modules that would not be called"
    return ""


_PASSED_OVER = ("relu", "maxpool", "downsample")


def _is_projection(shortcut: nn.Module) -> bool:
    plain = isinstance(shortcut, nn.Sequential)
    return plain and [type(part) for part in shortcut.children()] == [nn.Conv2d, nn.BatchNorm2d]


def _is_plain_pooling(pool: object) -> bool:
    """Whether a module is the pooling of He et al. (2015), table 1."""
    if type(pool) is not nn.MaxPool2d:
        return False
    expected = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1}
    square = all(getattr(pool, name) in (value, (value, value)) for name, value in expected.items())
    return square and not pool.ceil_mode and not pool.return_indices
