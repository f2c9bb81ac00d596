"""`FusedBatchNormAct2d` beside `nn.BatchNorm2d`: modes, buffers, errors, and what it adds."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from resnet.fused.batch_norm import FusedBatchNormAct2d
from tests.support.shallow_programs import relative

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHANNELS = 5
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "momentum 0.3": {"momentum": 0.3},
    "cumulative average": {"momentum": None},
    "eps 0.1": {"eps": 0.1},
    "not affine": {"affine": False},
    "no running statistics": {"track_running_stats": False},
}


def image(seed: int, *shape: int) -> Tensor:
    x = torch.randn(shape or (4, CHANNELS, 6, 7), generator=torch.Generator().manual_seed(seed)) * 2 + 1
    return x.to(DEVICE).contiguous(memory_format=torch.channels_last)


def pair(**options: Any) -> tuple[nn.BatchNorm2d, FusedBatchNormAct2d]:  # noqa: ANN401 - of nn.BatchNorm2d
    """A plain and a fused one with the same parameters."""
    torch.manual_seed(0)
    activation = options.pop("activation", "relu")
    plain = nn.BatchNorm2d(CHANNELS, **options)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    fused = FusedBatchNormAct2d(CHANNELS, **options, activation=activation)
    fused.load_state_dict(plain.state_dict())
    return plain.to(DEVICE), fused.to(DEVICE)


def require_equal_buffers(plain: nn.BatchNorm2d, fused: FusedBatchNormAct2d) -> None:
    state, its = plain.state_dict(), fused.state_dict()
    assert list(state) == list(its)
    for name, value in state.items():
        torch.testing.assert_close(its[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_is_batch_norm_and_relu_in_training_and_evaluation(options: dict[str, Any]) -> None:
    plain, fused = pair(**options)
    for step, training in enumerate((True, True, False, True, False)):
        plain.train(training)
        fused.train(training)
        inputs = image(step).requires_grad_(), image(step).requires_grad_()
        wanted, found = F.relu(plain(inputs[0])), fused(inputs[1])
        assert relative(found, wanted) < 1e-6
        for out in (wanted, found):
            (out * image(9)).sum().backward()
        assert inputs[0].grad is not None
        assert inputs[1].grad is not None
        assert relative(inputs[1].grad, inputs[0].grad) < 1e-5
        for parameter, its in zip(plain.parameters(), fused.parameters(), strict=True):
            assert parameter.grad is not None
            assert its.grad is not None
            assert relative(its.grad, parameter.grad) < 1e-5
        require_equal_buffers(plain, fused)


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_a_second_operand_is_added_before_the_activation(activation: str) -> None:
    plain, fused = pair(activation=activation)
    x, z = image(1), image(2)
    wanted = plain(x) + z
    assert relative(fused(x, z), F.relu(wanted) if activation == "relu" else wanted) < 1e-6


def test_a_second_operand_of_another_dtype_is_taken_as_the_first() -> None:
    plain, fused = pair()
    out = fused(image(1).bfloat16(), image(2))
    assert out.dtype == torch.bfloat16
    assert relative(out, F.relu(plain(image(1)) + image(2))) < 1e-2


@pytest.mark.parametrize("second_trains", [True, False])
@pytest.mark.parametrize("first_trains", [True, False])
def test_a_normalised_second_operand_updates_its_own_statistics(first_trains: bool, second_trains: bool) -> None:
    (plain, fused), (second, fused_second) = pair(), pair(momentum=0.4, activation="none")
    for norm in (plain, fused):
        norm.train(first_trains)
    for norm in (second, fused_second):
        norm.train(second_trains)
    x, z = image(1), image(2)
    assert relative(fused(x, z, fused_second), F.relu(plain(x) + second(z))) < 1e-6
    require_equal_buffers(plain, fused)
    require_equal_buffers(second, fused_second)


@pytest.mark.parametrize("training", [True, False])
def test_the_stem_pools(training: bool) -> None:
    plain, fused = pair()
    plain.train(training)
    fused.train(training)
    wanted = F.max_pool2d(F.relu(plain(image(1))), 3, stride=2, padding=1)
    assert relative(fused.pool(image(1)), wanted) < 1e-6
    require_equal_buffers(plain, fused)


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_counts_and_changes_nothing_else(training: bool) -> None:
    plain, fused = pair()
    plain.train(training)
    fused.train(training)
    x = image(1, 0, CHANNELS, 4, 4)
    assert fused(x).shape == plain(x).shape
    require_equal_buffers(plain, fused)


@pytest.mark.parametrize(
    "shape", [(1, CHANNELS, 1, 1), (4, CHANNELS), (2, CHANNELS + 1, 3, 3)], ids=["one value", "2D", "channels"]
)
def test_what_batch_norm_refuses_is_refused_with_its_error(shape: tuple[int, ...]) -> None:
    plain, fused = pair()
    x = torch.zeros(shape, device=DEVICE)
    errors = []
    for norm in (plain, fused):
        with pytest.raises((ValueError, RuntimeError)) as error:
            norm(x)
        errors.append((error.type, str(error.value)))
    wanted, found = errors
    assert found[0] is wanted[0]
    assert found[1].split("should")[-1] == wanted[1].split("should")[-1]  # which of weight and mean it looks at first
    assert all(torch.equal(buffer, its) for buffer, its in zip(pair()[1].buffers(), fused.buffers(), strict=True))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown activation 'gelu': choose one of relu, none"):
        FusedBatchNormAct2d(3, activation="gelu")  # type: ignore[arg-type]


def test_it_shows_its_activation() -> None:
    assert repr(pair()[1]).endswith("track_running_stats=True, activation=relu)")


# Into a convolution, with what it takes made again in backward.


def convolution(**options: Any) -> nn.Conv2d:  # noqa: ANN401 - of nn.Conv2d
    torch.manual_seed(1)
    return nn.Conv2d(CHANNELS, 10, 3, **{"padding": 1, "bias": False, **options}).to(DEVICE)


def kept(norm: FusedBatchNormAct2d, conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output and the tensors of the input's shape that are kept for backward."""
    tensors: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape == x.shape:
            tensors[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = norm.into(conv, x)
    return out, list(tensors.values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 5}, {"dilation": 2}], ids=str)
def test_a_rebuilt_input_gives_the_same_and_is_not_kept(options: dict[str, Any], training: bool) -> None:
    conv, outs = convolution(**options), []
    for rebuild in (False, True):
        _, fused = pair()
        fused.train(training)
        fused.rebuild = rebuild
        x = image(1).requires_grad_()
        out, tensors = kept(fused, conv, x)
        assert len(tensors) == (1 if rebuild else 2), "x, and what the convolution takes"
        parameters = [x, *fused.parameters(), *conv.parameters()]
        outs.append([out.detach(), *torch.autograd.grad((out * out.detach()).sum(), parameters), *fused.buffers()])
    for plain, rebuilt in zip(*outs, strict=True):
        assert torch.equal(plain, rebuilt)


@pytest.mark.parametrize("options", [{"bias": True}, {"padding": "same"}, {"padding_mode": "reflect"}], ids=str)
def test_other_convolutions_are_called_as_they_are(options: dict[str, Any]) -> None:
    _, fused = pair()
    fused.rebuild = True
    conv = convolution(**options)
    assert len(kept(fused, conv, image(1).requires_grad_())[1]) == 2
    assert relative(fused.into(conv, image(1)), conv(fused(image(1)))) < 1e-6


def test_a_rebuilt_input_under_autocast_is_in_low_precision() -> None:
    _, fused = pair()
    fused.rebuild = True
    conv = convolution()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out, tensors = kept(fused, conv, image(1).bfloat16().requires_grad_())
    assert out.dtype == torch.bfloat16
    assert len(tensors) == 1
    out.float().sum().backward()  # type: ignore[no-untyped-call]
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32
