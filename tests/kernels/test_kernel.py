"""What does not fit is refused as eager refuses it, before anything is launched."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from kernels.batch_norm.act import bn_act
from kernels.batch_norm.pool import bn_pool
from kernels.kernel import Norm
from tests.support.bn_cases import DEVICE

ONES = torch.ones(6, device=DEVICE)
NORM = Norm(ONES, ONES, ONES, ONES, 1e-5)
FITTING = torch.ones(2, 6, 4, 4, device=DEVICE)
REFUSED: dict[str, tuple[Tensor, Norm, bool, type[Exception], str]] = {
    "three dimensions": (FITTING[0], NORM, True, ValueError, r"expected 4D input \(got 3D input\)"),
    "one value": (FITTING[:1, :, :1, :1], NORM, True, ValueError, "Expected more than 1 value per channel when train"),
    "no eps": (FITTING, NORM._replace(eps=0.0), True, ValueError, "eps must be positive"),
    "eps below zero": (FITTING, NORM._replace(eps=-1.0), False, ValueError, "eps must be"),
    "integers": (FITTING.int(), NORM, True, NotImplementedError, "not implemented for"),
    "complex": (FITTING.to(torch.complex64), NORM, True, NotImplementedError, "not implemented for"),
    "fp8": (FITTING.to(torch.float8_e5m2), NORM, True, NotImplementedError, "not implemented for"),
    "weight": (FITTING, NORM._replace(weight=torch.ones(5)), True, RuntimeError, "weight should contain 6 elements"),
    "bias": (FITTING, NORM._replace(bias=torch.ones(7)), True, RuntimeError, "bias should contain 6 elements not 7"),
    "mean": (FITTING, NORM._replace(running_mean=torch.ones(1)), True, RuntimeError, "running_mean should contain 6"),
    "var": (FITTING, NORM._replace(running_var=torch.ones(1)), False, RuntimeError, "running_var should contain 6"),
    "no mean": (FITTING, NORM._replace(running_mean=None), False, RuntimeError, "running_mean must be defined in eval"),
    "no var": (FITTING, NORM._replace(running_var=None), False, RuntimeError, "running_var must be defined in eval"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_eager_refuses_is_refused(name: str) -> None:
    x, norm, training, kind, message = REFUSED[name]
    for fused in (bn_act, bn_pool):
        with pytest.raises(kind, match=message):
            fused(x, norm, training=training)
    if kind is not ValueError:  # which nn.BatchNorm2d raises before
        with pytest.raises(kind):
            F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training, eps=norm.eps or 0.0)


@pytest.mark.parametrize("changed", [{"weight": torch.ones(5)}, {"running_var": None}])
def test_the_second_norm_has_to_fit_as_well(changed: dict[str, Tensor | None]) -> None:
    with pytest.raises(RuntimeError, match=r"should contain 6 elements not 5|must be defined in evaluation mode"):
        bn_act(FITTING, NORM, FITTING, NORM._replace(**changed), training=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (2, 5, 4, 4), (3, 6, 4, 4)], ids=str)
def test_a_shortcut_has_to_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="must match the existing size"):
        bn_act(FITTING, NORM, torch.ones(shape, device=DEVICE), training=True)
