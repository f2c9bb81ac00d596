"""The table of paths: every way to run the network is a row of data. Imports the standard library only.

`resnet.program` turns a row into a program. To add a path, add a row: tests, parity, sweep and reports
follow the table.
"""

from dataclasses import dataclass
from typing import Literal

Need = Literal["cuda", "cuda for timing", "c++ compiler"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One way to run the network: how the model is prepared, and what that needs."""

    name: str
    summary: str
    channels_last: bool = True
    fuse: bool = False  # BatchNorm, ReLU and residual add by Triton kernels
    gram: bool = False  # with fuse: bottleneck blocks never write their widest tensors
    rebuild: bool = False  # with fuse: outputs inside blocks are recomputed in the backward pass instead of saved
    fold: bool = False  # fold BatchNorm into the convolutions, then fuse their ReLU and residual add
    products: bool = False  # with fold: 1x1 convolutions by Triton kernels too, chained where that is faster
    compile_mode: str | None = None  # torch.compile(mode=...)
    freeze: bool = False  # in inference: Inductor's freezing, with weights as constants
    cuda_graph: bool = False  # capture the whole step on CUDA; on CPU it runs uncaptured
    modes: tuple[Literal["train", "infer"], ...] = ("train", "infer")
    needs: tuple[Need, ...] = ()
    cpu_modes: tuple[Literal["train", "infer"], ...] | None = None  # if only some of `modes` make sense on CPU
    cpu_reason: str = ""  # why only those


PATHS: tuple[Path, ...] = (
    Path(name="eager", summary="plain PyTorch, contiguous NCHW: the baseline", channels_last=False),
    Path(name="channels_last", summary="plain PyTorch, channels_last memory format"),
    Path(
        name="compile",
        summary="channels_last + torch.compile, default mode",
        compile_mode="default",
        needs=("c++ compiler",),
    ),
    Path(
        name="compile-reduce-overhead",
        summary="channels_last + torch.compile with Inductor's CUDA graphs",
        compile_mode="reduce-overhead",
        needs=("cuda", "c++ compiler"),
    ),
    Path(
        name="compile-max-autotune",
        summary="channels_last + torch.compile with searched kernels; inference with frozen weights",
        compile_mode="max-autotune",
        freeze=True,
        needs=("c++ compiler",),
        cpu_modes=("infer",),
        cpu_reason="on CPU Inductor searches only kernels with frozen weights, so training is the same as `compile`",
    ),
    Path(
        name="cuda-graph",
        summary="channels_last, the whole step captured as one CUDA graph: forward, loss, backward, optimizer",
        cuda_graph=True,
        needs=("cuda",),
    ),
    Path(
        name="triton",
        summary="channels_last, BatchNorm fused with ReLU, residual add and the stem's pooling, in Triton",
        fuse=True,
        needs=("cuda for timing",),
    ),
    Path(
        name="triton-compile",
        summary="torch.compile over `triton`",
        fuse=True,
        compile_mode="default",
        needs=("cuda for timing", "c++ compiler"),
    ),
    Path(
        name="triton-cuda-graph",
        summary="`triton`, the whole step captured as one CUDA graph",
        fuse=True,
        cuda_graph=True,
        needs=("cuda for timing",),
    ),
    Path(
        name="triton-rebuild",
        summary="`triton`, with outputs inside blocks recomputed in backward: less memory, more work",
        fuse=True,
        rebuild=True,
        modes=("train",),
        needs=("cuda for timing",),
    ),
    Path(
        name="gram",
        summary="`triton`, with bottleneck blocks that never write their widest tensors: statistics from Gram matrices",
        fuse=True,
        gram=True,
        needs=("cuda for timing",),
    ),
    Path(
        name="gram-cuda-graph",
        summary="`gram`, the whole step captured as one CUDA graph",
        fuse=True,
        gram=True,
        cuda_graph=True,
        needs=("cuda for timing",),
    ),
    Path(
        name="gram-rebuild",
        summary="`gram`, with outputs inside blocks recomputed in backward: less memory, more work",
        fuse=True,
        gram=True,
        rebuild=True,
        modes=("train",),
        needs=("cuda for timing",),
    ),
    Path(
        name="folded",
        summary="channels_last, BatchNorm folded into the convolutions, ReLU and residual add fused into them",
        fold=True,
        modes=("infer",),
    ),
    Path(
        name="folded-triton",
        summary="`folded`, 1x1 convolutions also by products in Triton, chained from block to block; one CUDA graph",
        fold=True,
        products=True,
        cuda_graph=True,
        modes=("infer",),
        needs=("cuda for timing",),
    ),
)

PATHS_BY_NAME: dict[str, Path] = {path.name: path for path in PATHS}
