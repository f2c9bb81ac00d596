"""The nouns of the harness, as frozen data: standard library only, shared by the parent and the workers."""

from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from json import dumps
from typing import Literal

Mode = Literal["train", "infer"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Device = Literal["cpu", "cuda"]
Kind = Literal["measure", "parity", "max-batch"]


class Status(StrEnum):
    """The outcome of a case. Exactly one a row; `Result.reason` says more."""

    VALID = "valid"
    PARITY_FAILED = "parity-failed"
    UNSTABLE = "unstable"
    THROTTLED = "throttled"
    RECOMPILED = "recompiled"
    SHARED_GPU = "shared-gpu"
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    NOT_TIMED = "not-timed"
    UNSUPPORTED = "unsupported"


# Marks: the case was measured and its figures stand, under a condition that can only have made it slower or noisier.
MARKS = frozenset({Status.UNSTABLE, Status.THROTTLED, Status.RECOMPILED, Status.SHARED_GPU})
# The outcomes in which nothing has gone wrong.
FINE = frozenset({Status.VALID, Status.NOT_TIMED, Status.UNSUPPORTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One cell of the sweep.

    kind `measure` is checked and timed, `parity` only checked, and `max-batch` searches upwards from `batch_size` for
    the largest batch that fits.
    """

    model: str
    mode: Mode
    precision: Precision
    batch_size: int
    image_size: int
    path: str
    device: Device
    world_size: int = 1
    kind: Kind = "measure"

    @property
    def key(self) -> str:
        """Stable and readable, e.g. `resnet50-train-bf16-b256-i224-compile-cuda`."""
        batch = "bmax" if self.kind == "max-batch" else f"b{self.batch_size}"
        ranks = f"-w{self.world_size}" if self.world_size > 1 else ""
        suffix = "-parity" if self.kind == "parity" else ""
        cell = f"{self.model}-{self.mode}-{self.precision}-{batch}-i{self.image_size}"
        return f"{cell}-{self.path}-{self.device}{ranks}{suffix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings by which cases are measured, the same for every case of a run. Times in seconds."""

    confidence: float = 0.005  # target half-width of the 95 % interval of the median, relative to the median
    warmup_budget_s: float = 5.0
    sample_minimum_s: float = 1.0  # a few steps see one moment of the clocks, of the temperature and of neighbours
    sample_budget_s: float = 10.0  # of the samples, and once more of the turns with eager
    timeout_s: float = 600.0  # wall time of each stage of a case: reference, run up to the turns, each turn, the rest
    parity_steps: int = 3  # optimizer steps of a parity check
    parity_budget_s: float = 120.0  # estimated time of the fp64 reference; a smaller batch is checked beyond it
    weights: str = ""  # published weights or a state_dict file; empty: random weights, see `bench.measure.inputs`
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes, from a loop of its own after timing. None: cannot be known on this device."""

    peak_allocated_bytes: int | None = None  # CUDA: allocator, with graph pools; CPU: resident set above the baseline
    peak_reserved_bytes: int | None = None  # CUDA only
    process_bytes: int | None = None  # CUDA: NVML's figure for the process; CPU: peak resident set
    parameter_bytes: int | None = None  # parameters and buffers
    gradient_bytes: int | None = None
    optimizer_bytes: int | None = None
    activation_bytes: int | None = None  # kept by autograd for backward
    graph_pool_bytes: int | None = None  # private pools of CUDA graphs
    workspace_bytes: int | None = None  # what remains of the peak: temporaries and library workspaces


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """NVML beside the samples: medians over the sampling window."""

    sm_clock_mhz: float
    memory_clock_mhz: float
    power_w: float
    temperature_c: float
    throttle_reasons: tuple[str, ...] = ()
    other_processes: int = 0  # other processes seen on the same GPU
    energy_j: float | None = None  # None: the window was too short for the counter
    energy_steps: int = 0  # steps inside the energy window


Rounds = tuple[tuple[float, ...], ...]  # ms of each step of each turn; in a round each program has one turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The result of timing one case."""

    samples_ms: tuple[float, ...]  # every sample, in order, untrimmed: device time of one step
    wall_ms: float  # host wall time per step over the same samples
    first_call_s: float  # first call: compilation, autotuning, cuDNN search, graph capture
    steady: bool  # warm-up reached steady state within its budget
    converged: bool  # the confidence target was met within the sample budget
    recompilations: int = 0  # torch.compile recompilations during the samples
    graph_breaks: int = 0  # torch.compile graph breaks during the samples
    memory: Memory = field(default_factory=Memory)
    telemetry: Telemetry | None = None
    turns: dict[str, Rounds] = field(default_factory=dict)  # by case key: its own and those of its baselines
    turns_note: str = ""  # why a baseline took none


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorError:
    """Relative L2 error of one tensor against fp64, beside eager's at the same precision (`scale`: along the gradient).

    `tensor` is e.g. `output@1`, `loss@2`, `grad:layer1.0.conv1.weight@1`, `scale:layer1.0.conv1.weight@1`,
    `buffer:bn1.running_mean@1`, `param:fc.weight@3`; the number after @ is the step it was read after. NaN errors are
    stored as infinity.
    """

    tensor: str
    error: float
    eager_error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.error <= self.tolerance

    @property
    def severity(self) -> float:
        """Error in units of its tolerance: above 1 fails."""
        return self.error / self.tolerance if self.tolerance else float("inf") if self.error else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityResult:
    """The verdict over every tensor of every check of a case."""

    batch_size: int  # the batch it was checked at
    tensors: int  # how many tensors were compared
    worst: TensorError  # the largest error in units of its tolerance
    failures: tuple[TensorError, ...] = ()  # in execution order: the first is the first that diverges
    failed: int = 0  # how many failed (failures keeps the first few)
    first_layer: str = ""  # the first layer that diverges, where a check failed
    note: str = ""  # why the batch differs from the timed one, if it does

    @property
    def passed(self) -> bool:
        return self.failed == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The reference that a case is checked against, made once for all paths of a cell: see `bench.parity.reference`."""

    batch_size: int  # what fits; the timed batch where it does
    note: str  # why not the timed batch; empty where it is
    files: tuple[str, ...]  # of each check: the fp64 trajectory
    eager_errors: tuple[dict[str, float], ...]  # of each check: eager's errors at the case's precision, by tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The least work that one step of a case can be: see `bench.measure.cost`."""

    flops: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The rates that this device was measured to reach, those of products by name of the precision."""

    copy_bytes_per_s: float  # bytes read plus bytes written
    matmul_flops_per_s: dict[str, float]  # fp64, fp32, tf32, bf16, fp16: those the device runs
    measured_at: str = ""  # ISO 8601, UTC; an earlier run on this machine may have measured them


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Facts about where a run was made. The hash keys the journal: other facts, other results.

    Source files are not among the facts: the fact `revision` tells their states apart, and these name the files.
    """

    facts: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict)  # short digest of each source file, by its path
    changed_sources: tuple[str, ...] = ()  # those that differ from the commit that the revision names

    @property
    def hash(self) -> str:
        return sha256(dumps(self.facts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row: a case and its outcome. Written once, when the case is finished."""

    case: Case
    status: Status
    reason: str = ""  # never empty unless the status is valid
    measurement: Measurement | None = None  # None unless timed
    parity: ParityResult | None = None
    cost: Cost | None = None
    max_batch_size: int | None = None  # kind max-batch: the largest batch that fits
    choices: dict[str, str] = field(default_factory=dict)  # what the path decided by measuring, e.g. fused or not
    phases_s: dict[str, float] = field(default_factory=dict)  # wall seconds by phase: start-up, build, warm-up, ...
    finished_at: str = ""  # ISO 8601, UTC
    environment_hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The work of a run: the first line of its journal, so that a resume needs nothing else."""

    name: str  # of the preset
    cases: tuple[Case, ...]  # in the order they run: the most telling first
    settings: Settings
    command: str = ""  # as typed, for the report
    budget_s: float | None = None  # the preset's own: a new run ends within it, and what it leaves out is no failure
    emulated: bool = False  # measure precisions that the device only emulates: they were named on the command line


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One sitting of the runner over a run directory (a resumed run has several)."""

    started_at: str  # ISO 8601, UTC
    wall_s: float
    interrupted: str = ""  # why it stopped before the plan was done: Ctrl-C, budget; empty when it ran to the end
    as_planned: bool = False  # it stopped where the preset's own budget ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run directory as read back: results of its newest environment, the last result of each case."""

    plan: Plan
    environment: Environment | None = None
    ceilings: Ceilings | None = None
    results: tuple[Result, ...] = ()  # in the plan's order
    sessions: tuple[Session, ...] = ()
    notices: tuple[str, ...] = ()  # a torn line dropped, results of other environments left out

    @property
    def pending(self) -> tuple[Case, ...]:
        """The plan's cases that have no result yet."""
        done = {result.case.key for result in self.results}
        return tuple(case for case in self.plan.cases if case.key not in done)

    @property
    def left_out_as_planned(self) -> bool:
        """Whether what is pending was left out by the preset's own budget, after something was measured."""
        measured = any(result.measurement for result in self.results)
        return measured and bool(self.sessions) and self.sessions[-1].as_planned
