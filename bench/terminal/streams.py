"""Standard output and error that take whatever is printed, on any terminal. Standard library only.

Characters that their encoding lacks are replaced by ones that look alike. Output that cannot be printed is dropped,
because the pipe is closed (the reader was `head -1`) or the disk is full: the command measures to its end.
"""

import codecs
import errno
import io
import os
import sys
from typing import TextIO

_ERRORS = "resbench-lookalike"
_LOOKALIKES = {
    "–": "-", "—": "-", "×": "x", "…": "...", "·": ".", "°": " deg ",  # noqa: RUF001
    "±": "+/-", "µ": "u", "μ": "u", "≤": "<=", "≥": ">=",
    **dict.fromkeys("─━═", "-"), **dict.fromkeys("│┃║", "|"), "█": "#", "•": "*",
    **dict.fromkeys("┏┓┗┛┌┐└┘├┤┬┴┼┡┩╇╈┳┻╋┠┨", "+"),
}  # fmt: skip

_refusals: list[str] = []  # by the operating system


def settle() -> None:
    """Replace `sys.stdout` and `sys.stderr` by such streams."""
    codecs.register_error(_ERRORS, _lookalike)
    sys.stdout, sys.stderr = _tolerant(sys.stdout), _tolerant(sys.stderr)


def finish() -> str:
    """Print what is left, and return why some output was lost, if a person should know."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return _refusals[0] if _refusals else ""


def _lookalike(error: UnicodeError) -> tuple[str | bytes, int]:
    """The text in place of characters that cannot be printed; bytes of undecodable file names stay as they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return _LOOKALIKES.get(character, "?"), error.start + 1


class _Pipe(io.FileIO):
    """A file that takes everything, and drops what it cannot write."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno != errno.EPIPE:
                _refusals.append(os.strerror(error.errno or 0))
            return memoryview(data).nbytes  # type: ignore[arg-type]


def _tolerant(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed by the shell: >&-
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
    try:
        descriptor = stream.fileno()
    except (OSError, AttributeError):  # no file: somebody catches what is printed
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Pipe(descriptor, "wb", closefd=False)),
        encoding=stream.encoding,
        errors=_ERRORS,
        line_buffering=bool(getattr(stream, "line_buffering", False) or getattr(stream, "write_through", False)),
    )
