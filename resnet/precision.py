"""The modes and precisions of a step, and torch's settings for them."""

from typing import Literal

import torch

from kernels import kernel

Mode = Literal["train", "infer"]
Precision = Literal["fp64", "fp32", "tf32", "bf16", "fp16"]  # fp64: the reference of parity checks

DTYPES: dict[str, torch.dtype] = {**kernel.DTYPES, "tf32": torch.float32}  # of the operands of products, by Precision
AUTOCAST_DTYPE = {precision: DTYPES[precision] for precision in ("bf16", "fp16")}


def set_product_precision(precision: Precision) -> None:
    """Allow TF32 for fp32 products if and only if the precision is `tf32`; let cuDNN search its algorithms."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
