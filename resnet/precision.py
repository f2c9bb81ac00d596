"""What the modes and precisions of a step mean to torch."""

from typing import Literal

import torch

Mode = Literal["train", "infer"]
Precision = Literal["fp64", "fp32", "tf32", "bf16", "fp16"]  # fp64: the reference of parity checks

DTYPES: dict[Precision, torch.dtype] = {  # of the operands of products
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
AUTOCAST_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_product_precision(precision: Precision) -> None:
    """Let fp32 products run in TF32 if and only if the precision says so; let cuDNN search its algorithms."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
