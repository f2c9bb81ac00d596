"""Parity of every form over shapes, precisions, strides and modes that nobody has chosen."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kernels.kernel import Kernel, Shape
from kernels.table import KERNELS
from tests.support.bn_cases import STRIDES, map_images, operands_of, random_like, violations

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = 20
# So few rows that a BatchNorm in training returns little else than signs have gradients of rounding errors alone, and a
# ReLU may let a single value pass that is one itself.
FEWEST_ROWS = 16

shapes = st.tuples(st.integers(1, 6), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9))
layouts = st.sampled_from(("channels_last", "NCHW", *STRIDES))
dtypes = st.sampled_from((torch.float32, torch.bfloat16, torch.float16, torch.float64))


@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    kernel=st.sampled_from(KERNELS),
    shape=shapes,
    dtype=dtypes,
    layout=layouts,
    dy_layout=layouts,
    training=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_parity(
    kernel: Kernel, shape: Shape, dtype: torch.dtype, layout: str, dy_layout: str, training: bool, seed: int
) -> None:
    n, _, h, w = shape
    if layout == "one image for all":
        n = 1
    if layout == "one column for all":
        w = 1
    assume(n * h * w >= FEWEST_ROWS)
    operands = operands_of(kernel, shape, dtype, channels_last=layout == "channels_last", seed=seed)
    if layout in STRIDES:
        operands = map_images(operands, STRIDES[layout])
    dy = random_like(kernel.oracle(operands, training), seed + 1)
    if dy_layout in STRIDES:
        dy = STRIDES[dy_layout](dy)
    assert violations(kernel, operands, training, dy=dy) == []
