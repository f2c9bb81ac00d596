"""Each kernel of a bottleneck block alone, against plain PyTorch in fp64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from kernels.gram.backward import inner_filters, parameter_gradients
from kernels.gram.covariance import Source, gram_source
from kernels.gram.inner_gradient import inner_gradient
from kernels.gram.statistics import result_statistics
from kernels.kernel import Norm
from kernels.products.block_end import Branch, block_end
from kernels.products.conv_statistics import conv_statistics
from kernels.products.filter_gradient import filter_gradient
from kernels.products.input_gradient import input_gradient
from tests.support.exhaustive import exhaustive
from tests.support.gram_cases import DEVICE, DTYPES, dtypes, small_products  # noqa: F401 - a fixture
from tests.support.products import activated, close, line_of, mask_of, normalised, random, rows, spread, sums_of

EPS = 1e-5
N, K, COLUMNS, HEIGHT, WIDTH = 2, 20, 24, 7, 9  # no multiple of a tile

# By the dtype of the operands: results are accumulated in fp32 (fp64 for fp64), and rounded where they are stored.
STORED = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SUMMED = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
# Of products of y less its centre, which is rounded once more: off by 2^-9 or 2^-12 a value, and averaged over rows.
CENTRED = {torch.float64: 4e-12, torch.float32: 4e-5, torch.bfloat16: 1e-3, torch.float16: 2e-4}

strides = pytest.mark.parametrize("stride", [1, 2])

pytestmark = pytest.mark.usefixtures("small_products")


@strides
@dtypes
def test_a_convolution_and_the_statistics_of_its_result(dtype: torch.dtype, stride: int) -> None:
    x, filters = random(N, K, HEIGHT, WIDTH, dtype=dtype) + 2, random(COLUMNS, K, 1, 1, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    out, partials, rows_per_run = conv_statistics(x, filters, stride)
    close(out, F.conv2d(x.double(), filters.double(), stride=stride), STORED[dtype])
    assert out.is_contiguous(memory_format=torch.channels_last)
    means, spreads = partials[0].double()
    stored = rows(out)
    runs = torch.split(stored, rows_per_run)
    assert means.shape == (len(runs), COLUMNS)
    assert len(runs) > 1
    for mean, squares, run in zip(means, spreads, runs, strict=True):
        close(mean, run.mean(0), SUMMED[dtype] * 4)
        close(squares, (run - run.mean(0)).square().sum(0), SUMMED[dtype] * 4)


@pytest.mark.parametrize("with_norm", [True, False], ids=["behind a BatchNorm", "as it is"])
@strides
@dtypes
def test_statistics_from_the_gram_matrix(dtype: torch.dtype, stride: int, with_norm: bool) -> None:
    x, filters = random(N, K, HEIGHT, WIDTH, dtype=dtype), random(COLUMNS, K, 1, 1, dtype=dtype)
    weight, bias = 1 + random(K, seed=1) / 4, random(K, seed=2) / 4
    norm = Norm(weight, bias, None, None, EPS) if with_norm else None
    partials, line = None, None
    if norm is not None:
        x, partials, rows_per_part = conv_statistics(x, random(K, K, 1, 1, dtype=dtype), 1)
        stride = 1
    source, covariance, statistics = gram_source(x, stride, norm, partials, rows_per_part if norm else 0)
    if norm is not None:
        assert statistics is not None
        var, mean = torch.var_mean(rows(x), 0, correction=0)
        close(statistics, torch.stack((mean, var)), SUMMED[dtype] * 4)
        line = torch.stack((mean, weight.double() / (var + EPS).sqrt(), bias.double()))
        assert source.line is not None
        close(source.line, line, SUMMED[dtype] * 8)
    y = rows(activated(x, source.line), stride)
    close(covariance, torch.cov(y.T, correction=0), CENTRED[dtype])
    close(source.centre + source.offset, y.mean(0), CENTRED[dtype])
    behind = Norm(1 + random(COLUMNS, seed=3) / 4, random(COLUMNS, seed=4), None, None, EPS)
    found = result_statistics(source, covariance, filters, behind)
    result = y @ filters.flatten(1).double().T
    var, mean = torch.var_mean(result, 0, correction=0)
    tolerance = CENTRED[dtype]
    close(found.statistics, torch.stack((mean, var)), tolerance)
    assert behind.weight is not None
    assert behind.bias is not None
    wanted = torch.stack((mean, behind.weight.double() / (var + EPS).sqrt(), behind.bias.double()))
    close(found.line, wanted, tolerance)
    close(found.varied, filters.flatten(1).double() @ torch.cov(y.T, correction=0), tolerance)


@pytest.mark.parametrize("kind", ["shortcut", "projection", "neither"])
@pytest.mark.parametrize("relu", [True, *exhaustive(False)], ids=["relu", "no relu"])
@dtypes
def test_the_end_of_a_block(dtype: torch.dtype, relu: bool, kind: str) -> None:
    stride = 2
    x, line = random(N, K, HEIGHT, WIDTH, dtype=dtype), line_of(K, dtype)
    filters, result_line = random(COLUMNS, K, 1, 1, dtype=dtype), line_of(COLUMNS, dtype) / 2
    wanted = F.conv2d(activated(x, line).double(), filters.double())
    wanted = normalised(wanted, result_line)
    shortcut, z = None, None
    if kind == "shortcut":
        shortcut = random(N, COLUMNS, HEIGHT, WIDTH, dtype=dtype)
        wanted = wanted + shortcut.double()
    elif kind == "projection":
        source = random(N, 12, HEIGHT * stride - 1, WIDTH * stride, dtype=dtype)
        z = Branch(source, stride, None, random(COLUMNS, 12, 1, 1, dtype=dtype), line_of(COLUMNS, dtype) * 0.7)
        wanted = wanted + normalised(F.conv2d(source.double(), z.filters.double(), stride=stride), z.result_line)
    out, mask = block_end(Branch(x, 1, line, filters, result_line), z, shortcut, relu=relu, with_mask=relu)
    close(out, F.relu(wanted) if relu else wanted, STORED[dtype])
    if relu:
        assert mask is not None
        assert torch.equal(mask, mask_of(out > 0) | (mask & mask_of(out == 0)))  # a value that rounds to zero may pass
        assert torch.equal(mask & mask_of(wanted < -1e-2), torch.zeros_like(mask))
    else:
        assert mask is None


@strides
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "as it is"])
@dtypes
def test_the_gradient_of_filters(dtype: torch.dtype, masked: bool, stride: int) -> None:
    x = random(N, K, HEIGHT, WIDTH, dtype=dtype)
    small = x[:, :1, ::stride, ::stride]
    dy = random(N, COLUMNS, *small.shape[2:], dtype=dtype, seed=1)
    kept = random(*dy.shape, seed=2) > 0
    line = line_of(K, dtype) if masked else None
    centre = random(K, dtype=dtype, seed=3).to(sums_of(dtype)) if masked else None
    mask = mask_of(kept) if masked else None
    products, sums = filter_gradient(dy, mask, x, stride, line=line, centre=centre, with_sums=masked)
    d = rows(dy * kept if masked else dy)
    y = activated(x, line)
    if centre is not None:
        y = (y.to(sums_of(dtype)) - centre[:, None, None]).to(dtype)
    assert products.shape[0] > 1
    close(products.sum(0), d.T @ rows(y, stride), SUMMED[dtype] * 4)
    assert (sums is not None) == masked
    if sums is not None:
        close(sums.sum(0), d.sum(0), SUMMED[dtype] * 8)


def backward_operands(dtype: torch.dtype, stride: int) -> tuple[Source, Tensor, Tensor, Tensor, Norm, Tensor, Tensor]:
    """A source, its covariance, filters, dy, the BatchNorm behind, the mask and its flags."""
    x = random(N, K, HEIGHT, WIDTH, dtype=dtype)
    source, covariance, _ = gram_source(x, stride, None, None, 0)
    filters = random(COLUMNS, K, 1, 1, dtype=dtype) / 4
    dy = random(N, COLUMNS, *x[0, 0, ::stride, ::stride].shape, dtype=dtype, seed=1) + 0.5
    kept = random(*dy.shape, seed=2) > 0
    sums = sums_of(dtype)
    norm = Norm(1 + random(COLUMNS, dtype=sums, seed=3) / 4, random(COLUMNS, dtype=sums, seed=4), None, None, EPS)
    dy = dy.contiguous(memory_format=torch.channels_last)
    return source, covariance, filters, dy, norm, mask_of(kept), kept


@strides
@dtypes
def test_backward_through_a_convolution_that_does_not_exist(dtype: torch.dtype, stride: int) -> None:
    """Against autograd, which has its result."""
    source, covariance, filters, dy, norm, mask, kept = backward_operands(dtype, stride)
    assert norm.weight is not None
    statistics, _, varied = result_statistics(source, covariance, filters, norm)
    leaves = [of.double().requires_grad_() for of in (source.x, filters, norm.weight, norm.bias) if of is not None]
    out = F.conv2d(leaves[0], leaves[1], stride=stride)
    out = F.batch_norm(out, None, None, leaves[2], leaves[3], training=True, eps=EPS)
    wanted = torch.autograd.grad(out, leaves, (dy * kept).double())
    products, sums = filter_gradient(dy, mask, source.x, stride, centre=source.centre, with_sums=True)
    assert sums is not None
    parameters = (filters.to(sums_of(dtype)), norm.weight, norm.bias)
    found = parameter_gradients(products, sums, source, filters, varied, statistics, norm, parameters)
    tolerance = CENTRED[dtype]
    for mine, ref in zip(found[:3], wanted[1:], strict=True):
        assert mine is not None
        close(mine, ref, tolerance)
    dx, none = inner_gradient(dy, mask, source, *inner_filters(found.terms, filters, summed=False))
    assert none is None
    close(dx, wanted[0][:, :, ::stride, ::stride], STORED[dtype] * 2)


@dtypes
def test_the_gradient_behind_an_inner_batch_norm_and_its_sums(dtype: torch.dtype) -> None:
    x, norm = random(N, K, HEIGHT, WIDTH, dtype=dtype), Norm(random(K, seed=5), random(K, seed=6), None, None, EPS)
    x, partials, rows_per_part = conv_statistics(x, random(K, K, 1, 1, dtype=dtype), 1)
    source, covariance, statistics = gram_source(x, 1, norm, partials, rows_per_part)
    assert statistics is not None
    *_, filters, dy, behind, mask, kept = backward_operands(dtype, 1)
    its_statistics, _, varied = result_statistics(source, covariance, filters, behind)
    y = activated(x, source.line).double().requires_grad_()
    assert behind.weight is not None
    out = F.batch_norm(F.conv2d(y, filters.double()), None, None, behind.weight.double(), None, training=True, eps=EPS)
    (wanted,) = torch.autograd.grad(out, y, (dy * kept).double())
    wanted = wanted * (y > 0)
    products, sums = filter_gradient(dy, mask, x, 1, line=source.line, centre=source.centre, with_sums=True)
    assert sums is not None
    wanted_parameters = (None, None, None)
    found = parameter_gradients(products, sums, source, filters, varied, its_statistics, behind, wanted_parameters)
    assert found[:3] == wanted_parameters
    inner = inner_filters(found.terms, filters, summed=True)
    g, partial = inner_gradient(dy, mask, source, *inner, statistics=statistics, eps=EPS)
    close(g, wanted, STORED[dtype] * 2)
    assert partial is not None
    assert partial.shape[1] > 1
    mean, var = statistics.double()
    x_hat = (rows(x) - mean) / (var + EPS).sqrt()
    close(partial.sum(1)[0], rows(g).sum(0), SUMMED[dtype] * 8)
    close(partial.sum(1)[1], (rows(g) * x_hat).sum(0), SUMMED[dtype] * 8)


SKIPS: dict[str, tuple[int, int]] = {  # strides of the convolution and of the shortcut
    "identity": (1, 1), "projection": (1, 1), "downsampling": (1, 2), "v1": (2, 2), "v1, the shortcut as it is": (2, 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", SKIPS)
@dtypes
def test_the_gradient_of_a_blocks_input(dtype: torch.dtype, kind: str) -> None:
    stride, skip_stride = SKIPS[kind]
    x = random(N, COLUMNS, HEIGHT, WIDTH, dtype=dtype)
    filters = random(K, COLUMNS, 1, 1, dtype=dtype)
    dy = random(N, K, *x[0, 0, ::stride, ::stride].shape, dtype=dtype, seed=1)
    wanted = F.conv_transpose2d(dy.double(), filters.double())
    wanted = spread(wanted, x, stride)
    skip = random(N, COLUMNS, *x[0, 0, ::skip_stride, ::skip_stride].shape, dtype=dtype, seed=2)
    mask = None
    if kind == "identity":
        kept = random(*skip.shape, seed=3) > 0
        mask, wanted = mask_of(kept), wanted + skip.double() * kept
    else:
        wanted = wanted + spread(skip.double(), x, skip_stride)
    dx = input_gradient(dy, filters, x, stride, skip, mask, skip_stride)
    assert dx.is_contiguous(memory_format=torch.channels_last)
    close(dx, wanted, STORED[dtype])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(value: float) -> None:
    x = random(N, K, HEIGHT, WIDTH)
    x[1, 3, 2, 2] = value
    out, partials, _ = conv_statistics(x, random(COLUMNS, K, 1, 1), 1)
    assert not out[1, :, 2, 2].isfinite().any()
    assert not partials[0, 1].isfinite().all()
