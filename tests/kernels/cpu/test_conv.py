import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from kernels.cpu.conv import Algorithm, Avx512Conv2d
from kernels.cpu.pool import avx512_max_pool2d
from tests.support.cpus import needs_avx512_bf16

pytestmark = needs_avx512_bf16

# The unit roundoff of bf16, 2^-8, for the result; winograd rounds its transformed tiles and weights as well.
ERRORS: dict[Algorithm, float] = {"direct": 2**-8, "winograd": 2**-7}
NAN = math.nan

# n, c, k, h, w, kernel, stride, padding
DIRECT = (
    (1, 2, 32, 1, 1, 1, 1, 0),
    (2, 64, 64, 5, 3, 1, 1, 0),
    (1, 10, 32, 9, 8, 1, 2, 0),
    (3, 6, 96, 7, 9, 3, 1, 1),
    (1, 64, 32, 15, 15, 3, 2, 1),
    (2, 4, 32, 6, 6, 3, 1, 0),
    (1, 2, 32, 11, 13, 7, 2, 3),
    (1, 128, 512, 28, 28, 1, 1, 0),  # several chunks of pixels and passes over the columns
    (2, 256, 64, 20, 20, 3, 1, 1),
    (1, 512, 64, 7, 7, 3, 2, 1),  # few pixels
    (2, 3, 64, 30, 33, 7, 2, 3),  # an odd number of channels
    (1, 3, 32, 7, 7, 7, 1, 0),
    (2, 5, 64, 6, 5, 2, 1, 1),
    (1, 1, 32, 4, 3, 1, 1, 0),
)
WINOGRAD = (
    (1, 16, 32, 1, 1, 3, 1, 1),
    (2, 48, 96, 3, 5, 3, 1, 1),
    (1, 32, 64, 8, 7, 3, 1, 1),
    (3, 64, 64, 31, 30, 3, 1, 1),  # several chunks of tiles
    (1, 256, 64, 14, 14, 3, 1, 1),  # few tiles
)
CASES: list[tuple[Algorithm, tuple[int, ...]]] = [("direct", sizes) for sizes in (*DIRECT, *WINOGRAD)]
CASES += [("winograd", sizes) for sizes in WINOGRAD]


@pytest.fixture(autouse=True)
def threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bf16(*shape: int) -> Tensor:
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.randn(shape).to(torch.bfloat16, memory_format=layout)


def operands(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and a residual."""
    n, c, k, h, w, kernel, stride, padding = sizes
    torch.manual_seed(0)
    out = ((size + 2 * padding - kernel) // stride + 1 for size in (h, w))
    return bf16(n, c, h, w), bf16(k, c, kernel, kernel), bf16(k), bf16(n, k, *out)


def make(algorithm: Algorithm, sizes: tuple[int, ...], weight: Tensor, bias: Tensor, *, relu: bool) -> Avx512Conv2d:
    *_, stride, padding = sizes
    return Avx512Conv2d(algorithm, weight, bias, [stride] * 2, [padding] * 2, [1, 1], 1, relu)


def relative(out: Tensor, ref: Tensor) -> float:
    return float((out.double() - ref).norm() / ref.norm())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("algorithm", "sizes"), CASES)
def test_it_is_convolution_bias_residual_and_relu(algorithm: Algorithm, sizes: tuple[int, ...], relu: bool) -> None:
    x, weight, bias, residual = operands(sizes)
    *_, stride, padding = sizes
    convolve = make(algorithm, sizes, weight, bias, relu=relu)
    plain = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    added = plain + residual.double()
    for out, ref in ((convolve(x), plain), (convolve(x, residual), added)):
        assert out.dtype == torch.bfloat16
        assert out.shape == ref.shape
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert relative(out, ref.relu() if relu else ref) < ERRORS[algorithm]
    assert torch.equal(out, residual)  # written over it


@pytest.mark.parametrize(("algorithm", "sizes"), CASES)
def test_the_number_of_threads_does_not_change_a_bit(algorithm: Algorithm, sizes: tuple[int, ...]) -> None:
    x, weight, bias, _ = operands(sizes)
    convolve = make(algorithm, sizes, weight, bias, relu=False)
    outs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outs.append(convolve(x))
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("relu", [False, True])
def test_a_nan_reaches_every_output_that_reads_it(relu: bool) -> None:
    sizes = (1, 16, 32, 9, 9, 3, 1, 1)
    x, weight, bias, _ = operands(sizes)
    x[0, 3, 4, 6] = NAN
    reached = F.conv2d(x.float(), weight.float(), bias.float(), padding=1).isnan()
    assert torch.equal(make("direct", sizes, weight, bias, relu=relu)(x).isnan(), reached)
    assert make("winograd", sizes, weight, bias, relu=relu)(x).isnan()[reached].all()


@pytest.mark.parametrize(
    ("algorithm", "changed", "why"),
    [
        ("direct", {"weight": torch.zeros(32, 16, 3, 3)}, "bf16"),
        ("direct", {"weight": bf16(32, 11, 3, 3)}, "even number of input channels, or up to 32 values"),
        ("direct", {"weight": bf16(48, 16, 3, 3)}, "multiples of 32"),
        ("direct", {"weight": bf16(32, 16, 3, 1)}, "square"),
        ("direct", {"weight": bf16(32, 16, 9, 9)}, "up to 7x7"),
        ("direct", {"stride": (1, 2)}, "square"),
        ("direct", {"padding": (0, 1)}, "square"),
        ("direct", {"dilation": (2, 2)}, "without groups or dilation"),
        ("direct", {"groups": 2}, "without groups or dilation"),
        ("winograd", {"weight": bf16(32, 16, 1, 1)}, "3x3"),
        ("winograd", {"stride": (2, 2)}, "stride 1"),
        ("winograd", {"padding": (0, 0)}, "padding 1"),
        ("winograd", {"weight": bf16(32, 24, 3, 3)}, "multiples of 16"),
    ],
)
def test_what_it_does_not_take_is_refused(algorithm: Algorithm, changed: dict[str, object], why: str) -> None:
    arguments: dict[str, object] = {"weight": bf16(32, 16, 3, 3), "stride": (1, 1), "padding": (1, 1)}
    arguments |= {"dilation": (1, 1), "groups": 1, "bias": bf16(32), "relu": True} | changed
    with pytest.raises(RuntimeError, match=f"supports only .*{why}"):
        Avx512Conv2d(algorithm, **arguments)  # type: ignore[arg-type]


def test_tensors_that_do_not_fit_are_refused() -> None:
    sizes = (2, 16, 32, 8, 8, 3, 1, 1)
    x, weight, bias, residual = operands(sizes)
    convolve = make("direct", sizes, weight, bias, relu=True)
    for wrong, why in ((x.float(), "float32"), (x.contiguous(), "strides"), (bf16(2, 18, 8, 8), "shape")):
        with pytest.raises(RuntimeError, match=why):
            convolve(wrong)
    for wrong, why in (
        (residual[:1], "shape"),
        (residual.float(), "float32"),
        (residual.contiguous(), "channels_last"),
    ):
        with pytest.raises(RuntimeError, match=why):
            convolve(x, wrong)


@pytest.mark.parametrize(("n", "c", "h", "w"), [(1, 32, 1, 1), (2, 64, 7, 8), (1, 96, 12, 5), (3, 64, 112, 112)])
def test_pooling_is_that_of_pytorch(n: int, c: int, h: int, w: int) -> None:
    torch.manual_seed(0)
    x = bf16(n, c, h, w)
    x[:, ::3, h // 2, w // 2] = NAN
    x[:, 1::3, : h // 2 + 1] = -math.inf
    wanted = F.max_pool2d(x, 3, stride=2, padding=1)
    torch.testing.assert_close(avx512_max_pool2d(x), wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 64, 8, 8), bf16(1, 48, 8, 8), bf16(1, 64, 8, 8).contiguous()])
def test_pooling_refuses_what_it_does_not_take(wrong: Tensor) -> None:
    with pytest.raises(RuntimeError, match="supports only bf16 in channels_last with channels in multiples of 32"):
        avx512_max_pool2d(wrong)
