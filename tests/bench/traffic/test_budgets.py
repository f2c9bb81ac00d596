"""The budgets that kernels declare, beside an independent count of the tensors that they are given."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.bottleneck.forms import BLOCKS, BlockForm
from kernels.launch.runtime import Call, recorded

# Arguments with a few values a channel: budgets may leave them out.
SMALL = {
    "line_ptr", "result_line_ptr", "z_result_line_ptr", "centre_ptr", "offset_ptr", "constant_ptr", "diagonal_ptr",
    "unscale_ptr", "statistics_ptr", "weight_ptr", "bias_ptr", "dweight_ptr", "dbias_ptr", "terms_ptr",
}  # fmt: skip
# Of which tensors a launch touches a part: see `expected`.
SAMPLED, DIAGONAL = "_prepare", "_filter_statistics"
TRIANGULAR = {"_gram": "BLOCK_CHANNELS", "_covariance": "GRAM_BLOCK"}  # and the side of a block


def tensors(call: Call) -> dict[str, Tensor]:
    named = zip(call.kernel.arg_names, call.arguments, strict=False)
    return {name: of for name, of in named if isinstance(of, Tensor)}


def option(call: Call, name: str) -> Any:  # noqa: ANN401 - of any type
    return (dict(zip(call.kernel.arg_names, call.arguments, strict=False)) | call.options)[name]


def expected(call: Call) -> tuple[int, int]:
    """The least and the most that a launch may say: bytes of its arguments without and with the small ones."""
    most = least = 0
    for name, of in tensors(call).items():
        size = of.nbytes
        strided = {"x_ptr": "STRIDE", "z_ptr": "Z_STRIDE"}.get(name, "")
        if strided in call.options and of.dim() == 4:
            stride = option(call, strided)
            size = of[:, :, ::stride, ::stride].numel() * of.itemsize
        if call.kernel.__name__ == SAMPLED and name == "x_ptr":
            size = option(call, "sample") * of.shape[1] * of.itemsize
        if call.kernel.__name__ in TRIANGULAR and name == "products_ptr":  # blocks on and above the diagonal
            block = option(call, TRIANGULAR[call.kernel.__name__])
            blocks = -(-of.shape[1] // block)
            size = min(size, of.shape[0] * block**2 * blocks * (blocks + 1) // 2 * of.itemsize)
        if call.kernel.__name__ == DIAGONAL and name == "covariance_ptr":
            size = of.shape[0] * of.itemsize
        most += size
        least += 0 if name in SMALL else size
    return least, most


@pytest.mark.parametrize(
    ("form", "first_stride"),
    [(form, stride) for form in BLOCKS for stride in (1, 2) if form.projected or stride == 1],  # no identity has one
    ids=lambda of: getattr(of, "name", of),
)
def test_budgets_are_the_bytes_of_what_is_touched(form: BlockForm, first_stride: int) -> None:
    """In training and evaluation, also with a stride of the first convolution besides the block's own."""
    operands = form.make((16, 256, 28, 28), torch.bfloat16, "meta")
    if first_stride == 2:
        geometry = operands.geometry._replace(first_stride=2, projection_stride=2 * form.stride)
        operands = operands._replace(geometry=geometry)
    with recorded("sm_90") as calls:
        y = form.run(operands, True)
        torch.autograd.grad(y, operands.differentiable(), torch.empty_like(y))
        with torch.no_grad():
            form.run(operands, False)
    declared = [call for call in calls if call.budget is not None]
    assert {call.kernel.__name__ for call in declared} >= {
        "_conv_statistics", "_prepare", "_gram", "_covariance", "_varied", "_filter_statistics", "_block_end",
        "_filter_gradient", "_parameter_gradients", "_inner_filters", "_inner_gradient", "_input_gradient",
    }  # fmt: skip
    for call in declared:
        least, most = expected(call)
        assert least <= call.bytes <= most, call.kernel.__name__
