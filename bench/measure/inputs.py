"""The inputs of a case: a model in a telling state, its program, and fresh random batches. Everything from a seed."""

from functools import partial

import torch
from torch import Tensor, nn

from bench.types import Case, Settings
from resnet.models.build import build_network
from resnet.models.table import network_of
from resnet.paths import PATHS_BY_NAME
from resnet.precision import Precision
from resnet.program import Program

_WEIGHT_SCALE = 0.25  # makes the variances that BatchNorm sees small, so that its eps is felt
_SHIFT = 2.0  # |beta| / gamma inside a block
_NEGATIVE_SHIFTS = 0.3
_CALIBRATION_BATCH = 4
_LAST = {"basic": "bn2", "bottleneck": "bn3"}  # at the end of a residual branch


def make_model(name: str, seed: int, weights: str = "") -> nn.Module:
    """A model in fp32 on the CPU: with `weights` (see `resnet.models.weights`), else in a telling random state.

    Raises:
        ValueError: the weights cannot be loaded.
    """
    if not weights:
        return _random_model(name, seed)
    from resnet.models.weights import load_weights  # noqa: PLC0415 - imports torchvision, which takes a second

    model = build_network(name)
    load_weights(model, weights)
    return model


def make_program(case: Case, settings: Settings, precision: Precision | None = None) -> Program:
    """The program of a case, not run yet: at the case's precision, or at another one.

    Raises:
        ValueError: the weights cannot be loaded.
    """
    model = make_model(case.model, settings.seed, settings.weights)
    path, precision = PATHS_BY_NAME[case.path], precision or case.precision
    return Program(path, model, mode=case.mode, precision=precision, device=case.device)


def make_batch(case: Case, seed: int) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] (fp32, standard normal) and labels [N] (int64) of a case, made on its device.

    Images are rounded to bf16, which every precision represents exactly, so that all share one fp64 reference.
    """
    network = network_of(case.model)
    generator = torch.Generator(case.device).manual_seed(seed)
    shape = network.images(case.batch_size, case.image_size)
    images = torch.randn(shape, generator=generator, device=case.device)
    labels = torch.randint(network.classes, (case.batch_size,), generator=generator, device=case.device)
    return images.bfloat16().float(), labels


def _random_model(name: str, seed: int) -> nn.Module:
    """A model whose every parameter and buffer matters.

    A freshly made network hides mistakes: gamma 1, beta 0 and running statistics 0 and 1 make errors in them
    invisible. Here gamma and beta are random, and running statistics come from a forward pass, off by some percent, so
    that they differ from every batch's own. And it amplifies rounding: values near zero change sides of the ReLU, and
    gradients then measure coin flips. Here gamma is smaller at the end of a residual branch, as in trained networks,
    and beta inside a block is two gammas away from zero, mostly above. tests/bench/measure/test_inputs.py shows what it
    does to the error of eager's gradients.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = partial(_uniform, generator=generator)
    torch.manual_seed(seed)
    network, model = network_of(name), build_network(name)
    norms = {key: module for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(_WEIGHT_SCALE)
        for key, norm in norms.items():
            if key.endswith(_LAST[network.block]):
                uniform(norm.weight, 0.2, 0.4)
                uniform(norm.bias, -0.5, 0.5)
            else:
                uniform(norm.weight, 0.75, 1.25)
                negative = uniform(torch.empty_like(norm.bias), 0.0, 1.0) < _NEGATIVE_SHIFTS
                uniform(norm.bias, 0.75 * _SHIFT, 1.25 * _SHIFT)[negative] *= -1.0
            norm.momentum = 1.0
        images = network.images(_CALIBRATION_BATCH, 2 * network.reduction)
        model.train()(torch.randn(images, generator=generator))
        for norm in norms.values():
            assert norm.running_mean is not None  # noqa: S101
            assert norm.running_var is not None  # noqa: S101
            norm.momentum = 0.1
            norm.running_mean *= uniform(torch.empty_like(norm.running_mean), 0.9, 1.1)
            norm.running_var *= uniform(torch.empty_like(norm.running_var), 0.8, 1.25)
    return model


def _uniform(tensor: Tensor, low: float, high: float, *, generator: torch.Generator) -> Tensor:
    return tensor.uniform_(low, high, generator=generator)
