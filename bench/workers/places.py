"""Places for files that are not the run's: temporary ones, caches, the socket of the server of workers.

Most machines have a place for each. Containers, clusters and batch systems may lack a home, an account for the user id,
a temporary directory that can be written, or have one whose path is too long for a socket: there everything gets a
place of the run's own, private and gone at its end. Standard library only.
"""

import atexit
import getpass
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.process import current_process
from pathlib import Path
from shutil import rmtree

from bench.workers.errors import explained

TEMPORARY = ".tmp"  # in the run directory, while it runs, where there is no temporary directory

_SOCKET_FOLDER = 107 - len("/listener-12345678")  # bytes: what Linux binds a socket to, without the socket's own name

# The variables that say where libraries keep what they compiled or drew, if not in the home, and a folder for each.
_CACHES = {"TRITON_CACHE_DIR": "triton", "CUDA_CACHE_PATH": "cuda", "MPLCONFIGDIR": "matplotlib"}
_DOWNLOADS = {"TORCH_HOME": ".cache/torch"}  # used where it is there, also if nothing can be added


def settle(directory: Path | None = None) -> None:
    """Find a place for everything, for this process and those that it starts. What has one is left alone.

    `directory` is the one that the command writes to, if any: it lends a place where there is no temporary directory.

    Raises:
        ValueError: there is no place for temporary files.
    """
    _settle_temporary(directory)
    _settle_user()
    _settle_home()


def place_sockets() -> None:
    """Give multiprocessing a folder for its sockets, under a name that is short enough for them.

    Where the path is too long, it is the name of a descriptor of this process, which leads to the same folder.
    """
    config: dict[str, object] = current_process()._config  # type: ignore[attr-defined]
    if "tempdir" in config:
        return
    folder = str(_own_folder("sockets"))
    if len(os.fsencode(folder)) > _SOCKET_FOLDER:
        folder = f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)}"
    config["tempdir"] = folder


def _settle_temporary(directory: Path | None) -> None:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        if directory is None:
            raise ValueError(
                "there is no place for temporary files: neither TMPDIR nor /tmp, /var/tmp or the current directory can "
                "be written to; set TMPDIR to a directory that can be, or name one with --out"
            ) from None
        tempfile.tempdir = os.environ["TMPDIR"] = str(_lent(directory.absolute()))


def _lent(directory: Path) -> Path:
    """A folder in the directory, gone at the end of this process, and so is the directory if it is empty then."""
    folder = directory / TEMPORARY
    with explained(f"cannot write to {directory}", "name another directory"):
        folder.mkdir(parents=True, exist_ok=True)
    _at_end(partial(_remove_empty, directory))
    _at_end(partial(rmtree, folder, ignore_errors=True))
    return folder


def _settle_user() -> None:
    """The name of the user is part of default paths of torch's compiler, and not every user id has one."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"user-{os.getuid()}"


def _settle_home() -> None:
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.expanduser raises where there is no home
    there = home.is_absolute() and home.is_dir()
    if there and (os.access(home, os.W_OK | os.X_OK) or _CACHES.keys() <= os.environ.keys()):
        return
    own = _own_folder("home")
    if not there:
        os.environ["HOME"] = str(own)
    for name, folder in _CACHES.items():
        os.environ.setdefault(name, str(own / folder))
    for name, folder in _DOWNLOADS.items():
        if not (home / folder).is_dir():
            os.environ.setdefault(name, str(own / folder))


def _own_folder(purpose: str) -> Path:
    """A new private folder, gone at the end of this process."""
    folder = Path(tempfile.mkdtemp(prefix=f"resbench-{purpose}-"))
    _at_end(partial(rmtree, folder, ignore_errors=True))
    return folder


def _at_end(remove: Callable[[], None]) -> None:
    """Call it at the end of this process, the last first, and not at that of its forks."""
    owner = os.getpid()
    atexit.register(lambda: remove() if os.getpid() == owner else None)


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()
