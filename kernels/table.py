"""The table of fused operations: tests, the audit and `resbench kernels` follow it."""

from kernels import bn_act, bn_pool
from kernels.bottleneck_forms import BLOCKS, BlockForm
from kernels.kernel import Kernel

KERNELS: tuple[Kernel, ...] = (*bn_act.KERNELS, *bn_pool.KERNELS)

KERNELS_BY_NAME: dict[str, Kernel] = {kernel.name: kernel for kernel in KERNELS}

FORMS: dict[str, Kernel | BlockForm] = {**KERNELS_BY_NAME, **{block.name: block for block in BLOCKS}}
