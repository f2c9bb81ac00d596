"""What goes wrong in workers, and a little that goes right: entries for the tests of `bench.workers.parent`."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.measure import malloc
from bench.run import case_run
from bench.types import Case, Reference, Settings
from bench.workers import child as workers_child

LOADED_BEFORE = frozenset(sys.modules)  # when the worker came to its entry


def add(one: int, other: int) -> int:
    return one + other


def inherited() -> dict[str, bool]:
    """What a worker has before it imports anything itself."""
    import torch  # noqa: PLC0415 - the parent imports this module, and it must not get torch with it

    return {
        "torch": "torch" in LOADED_BEFORE,
        "entries": "bench.run.worker" in LOADED_BEFORE,
        "cuda": torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
        "group": os.getpgid(0) == os.getpid(),
    }


def complain() -> None:
    workers_child.announce("digging")
    raise KeyError("no such bone\nand a second line")


def segfault() -> None:
    workers_child.announce("digging")
    ctypes.string_at(0)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(code: int, politely: bool) -> None:
    if politely:
        sys.exit(code)
    os._exit(code)


def hang(pids: Path) -> None:
    """Start a child, write both process ids to `pids`, and sleep."""
    child = subprocess.Popen(["sleep", "1000"])  # noqa: S607 - wherever sleep is
    workers_child.announce("digging")
    half = pids.with_suffix(".half")
    half.write_text(f"{os.getpid()} {child.pid}")
    half.rename(pids)
    time.sleep(1000)


def stop_in_the_middle_of_its_answer() -> None:
    connection = workers_child._connection
    assert connection is not None
    os.write(connection.fileno(), (1000).to_bytes(4) + b"the first of a thousand bytes")
    os._exit(7)


def take_turns(step_ms: float) -> str:
    """Serve turns of one step that takes as long as told; of 0 ms, die of the first question."""
    asked = 0

    def reply() -> list[float]:
        nonlocal asked
        if not step_ms:
            kill_itself()
        asked += 1
        return [step_ms]

    workers_child.serve(reply)
    return f"asked {asked} times"


def shout(words: str) -> None:
    print(words)  # noqa: T201
    os.write(2, b"and from C\n")


def litter() -> str:
    """Leave a temporary file behind and hang: the way to it goes through the phase."""
    _, name = tempfile.mkstemp()
    workers_child.announce(name)
    time.sleep(1000)
    return name


class WritesAnew:
    """A program whose steps write 200 MB that the step before has freed; counts the page faults of each.

    The first step frees 220 MB: small blocks that settle at the edges of what it freed leave room for the others.
    """

    def __init__(self) -> None:
        self.faults: list[int] = []

    def place(self, images: object) -> object:
        return images

    def step(self, *_: object) -> None:
        import torch  # noqa: PLC0415 - see `inherited`

        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.full((50_000_000 if self.faults else 55_000_000,), 1.0)
        self.faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    def steps(self) -> None:
        for _ in range(6):
            self.step()


def page_faults(case: Case, settings: Settings, role: str) -> int:
    """Of a step that a worker times as a case, or as a baseline; or of a step that is not timed.

    The least of some steps, as small blocks find their places first.
    """
    from bench.run import worker  # noqa: PLC0415 - imports torch

    program = WritesAnew()
    if role == "case":
        setattr(case_run.CaseRun, "check_and_measure", lambda _: program.steps())  # noqa: B010
        against = Reference(batch_size=1, note="", files=(), eager_errors=())
        worker.run_case(case, settings, against, None, False)
    elif role == "baseline":
        setattr(worker, "make_program", lambda *_: program)  # noqa: B010
        setattr(worker, "serve", lambda reply: [reply() for _ in range(3)])  # noqa: B010
        worker.run_baseline(case, settings)
    else:
        program.steps()
    return min(program.faults[1:])


class Scatters:
    """A program whose steps hold 220 MB at most, of blocks that do not fit where others were freed."""

    optimizer = None

    def __init__(self) -> None:
        import torch  # noqa: PLC0415 - see `inherited`

        self.model = torch.nn.Identity()
        self.kept: list[object] = []

    def step(self, *_: object) -> None:
        import torch  # noqa: PLC0415 - see `inherited`

        blocks = [torch.ones(5_000_000, dtype=torch.uint8) for _ in range(40)]
        del blocks[::2]
        blocks += [torch.ones(6_000_000, dtype=torch.uint8) for _ in range(20)]
        self.kept.append(torch.ones(100_000, dtype=torch.uint8))  # in what the next step could have used


def peak_after_timing() -> int:
    """Bytes that `memory.measure` finds for `Scatters` after steps that were timed."""
    import torch  # noqa: PLC0415 - see `inherited`

    from bench.measure import memory  # noqa: PLC0415 - imports torch

    program, images = Scatters(), torch.ones(1)
    start = memory.baseline()
    with malloc.freed_is_kept("cpu"):
        for _ in range(5):
            program.step()
        found = memory.measure(program, images, images, baseline_bytes=start)  # type: ignore[arg-type]
    peak = found.peak_allocated_bytes
    assert peak is not None
    return peak


def vector_checks(case: Case, tools: Path | None) -> int:
    """How many programs a case compiles to learn which vector instructions work."""
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list  # noqa: PLC0415 - imports torch

    from bench.run import worker  # noqa: PLC0415

    with worker._own_resources(case, tools):
        cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        before = set(cache.rglob("*.so"))
        valid_vec_isa_list()
        return len(set(cache.rglob("*.so")) - before)


def own_resources(case: Case, tools: Path | None) -> tuple[int, str, list[str]]:
    """Of a case in its worker: the limit of its memory, its compile cache, and what is in there before it begins."""
    from bench.run import worker  # noqa: PLC0415 - imports torch

    with worker._own_resources(case, tools):
        cache = os.environ["TORCHINDUCTOR_CACHE_DIR"]
        return resource.getrlimit(resource.RLIMIT_DATA)[0], cache, [entry.name for entry in Path(cache).iterdir()]


def places() -> dict[str, bool]:
    """Whether this worker has a place for temporary files of its own, and a home to write to."""
    return {
        "temporary": Path(tempfile.mkdtemp()).parent.name.startswith("resbench-worker-"),
        "home": Path.home().is_dir() and os.access(Path.home(), os.W_OK),
    }


def lie() -> int:
    return "many"  # type: ignore[return-value]


def misread() -> int:
    return int("nine")
