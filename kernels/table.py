"""The table of fused operations: tests, the audit and `resbench kernels` follow it."""

from kernels.batch_norm import act, pool
from kernels.bottleneck.forms import BLOCKS, BlockForm
from kernels.kernel import Kernel

KERNELS: tuple[Kernel, ...] = (*act.KERNELS, *pool.KERNELS)

KERNELS_BY_NAME: dict[str, Kernel] = {kernel.name: kernel for kernel in KERNELS}

BLOCKS_BY_NAME: dict[str, BlockForm] = {block.name: block for block in BLOCKS}

FORMS: dict[str, Kernel | BlockForm] = {**KERNELS_BY_NAME, **BLOCKS_BY_NAME}
