"""Products by cuBLAS, where a search found it faster than Triton: launched, recorded and counted like kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.launch.runtime import Budget, launch_kernel
from kernels.products.tiles import Product


class _Cublas:
    """out = a @ b, called the way that kernels are launched."""

    __name__ = "_cublas"

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[[Tensor, Tensor, Tensor], None]:
        return self._run

    def _run(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        torch.mm(a, b, out=out)


CUBLAS = _Cublas()


def library_product(out: Tensor, a: Tensor, b: Tensor, product: Product) -> None:
    """Write a [M, K] @ b [K, N] to out [M, N], all of one dtype."""
    launch_kernel(
        CUBLAS, (), out, a, b, chosen_for=product,
        budget=lambda: Budget(read=a.nbytes + b.nbytes, written=out.nbytes, flops=2 * out.numel() * a.shape[1]),
    )  # fmt: skip


def as_rows(x: Tensor) -> Tensor:
    """View x [N, C, H, W], channels_last, as a matrix of rows [N * H * W, C]."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)
