"""The nouns of the kernel bench, as frozen data: standard library only, shared by the parent and the workers.

An **op** is one fused form (a row of `kernels.table.FORMS`) at one shape, dtype and mode. A **row** is what is timed of
it: its forward or its backward call as a whole, or one launch of these alone.
"""

from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, get_args

from bench.types import Ceilings, Device, Environment, Rounds, TensorError

Shape = tuple[int, int, int, int]  # N, C, H, W
Dtype = Literal["fp32", "bf16", "fp16"]
KernelMode = Literal["train", "eval"]
Direction = Literal["forward", "backward"]
Contender = Literal["fused", "eager", "compile", "copy"]
TileKey = str | tuple[str | int, ...]  # a kind of pass over a tensor; or what a `kernels.products.tiles.Product` says


DTYPES: tuple[Dtype, ...] = get_args(Dtype)
# The rows of `kernels.table`, which imports torch, by name; a test keeps them equal.
NORM_FORMS = ("bn", "bn+relu", "bn+residual+relu", "dual", "stem")
BLOCK_FORMS = ("bottleneck", "bottleneck+projection", "bottleneck+downsampling")
FORMS = (*NORM_FORMS, *BLOCK_FORMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The ops to be measured. What is left out depends on the device: see `bench.kernels.ops.filled`."""

    device: Device | None = None
    models: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = ()  # besides those of the models
    forms: tuple[str, ...] = ()  # none: all that occur
    dtypes: tuple[Dtype, ...] = ("bf16",)
    mode: KernelMode = "train"
    batch_size: int | None = None
    image_size: int | None = None  # each model's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One form at one shape, and how many of it one step of each network does."""

    form: str
    shape: Shape
    dtype: Dtype
    mode: KernelMode
    layers: dict[str, int] = field(default_factory=dict, hash=False)  # by model; none: for comparison, or asked for

    @property
    def block(self) -> bool:
        return self.form in BLOCK_FORMS

    @property
    def key(self) -> str:
        """E.g. `bn+relu-256x64x56x56-bf16-train`."""
        return f"{self.form}-{'x'.join(map(str, self.shape))}-{self.dtype}-{self.mode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The machine to measure on, and the ops to measure."""

    request: Request  # with nothing left out
    device: Device
    environment: Environment
    ceilings: Ceilings  # of a large copy; and where blocks are timed, of products in the dtypes of the request
    cache_bytes: int  # of the last cache before memory
    architecture: str  # whose launches the bytes are those of
    seconds: float  # of sampling, per row
    why_untimed: str  # why the fused ops are checked and not timed here; empty where they are timed
    ops: tuple[Op, ...]  # in the order they run: the most telling first


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    """A call or a launch that was timed, and the bytes that it moves."""

    direction: Direction
    launch: str = ""  # one launch: its kind of pass (`kernels.launch.passes.Pass`) or its kernel; empty: the whole call
    tensor_bytes: int  # of x, for comparison with the cache
    bytes: int  # that the fused op reads and writes
    flops: int = 0  # of its products of matrices
    floor_bytes: int | None = None  # the least for a tensor that no cache holds; None for a block and for one launch
    rounds: dict[Contender, Rounds] = field(default_factory=dict)  # ms of one call; in a round each has one turn
    untimed: dict[Contender, str] = field(default_factory=dict)  # why not, where this machine cannot
    failures: dict[Contender, str] = field(default_factory=dict)  # what went wrong

    def samples_ms(self, contender: Contender) -> tuple[float, ...]:
        """Every sample, in order; none where it was not timed."""
        return tuple(chain.from_iterable(self.rounds.get(contender, ())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Parity of one op against fp64: the tensor that comes closest to its tolerance, or farthest past it."""

    batch_size: int
    tensors: int
    worst: TensorError

    @property
    def passed(self) -> bool:
        return self.worst.passed


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one op."""

    op: Op
    check: Check | None = None
    rows: tuple[KernelRow, ...] = ()  # without times where the check failed
    failure: str = ""  # what went wrong with all of it
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether anything went wrong besides parity."""
        return bool(self.failure) or any(row.failures for row in self.rows)

    @property
    def wrong(self) -> bool:
        """Whether parity failed."""
        return self.check is not None and not self.check.passed


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRun:
    """A whole run, as the report shows it."""

    survey: Survey
    outcomes: tuple[Outcome, ...]
    command: str
    wall_s: float
    interrupted: str = ""  # why it stopped before every op was done

    @property
    def pending(self) -> tuple[Op, ...]:
        return self.survey.ops[len(self.outcomes) :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One tile, or a library instead, of one kind of launch at one shape: its time, or why it does not run."""

    key: TileKey  # of the line of the table that says what is chosen now
    op: Op
    tile: dict[str, int] = field(hash=False)  # the fields of a row of that table; none: by a library
    present: bool  # it is the one of the tables
    bytes: int
    ms: float | None = None
    reason: str = ""
