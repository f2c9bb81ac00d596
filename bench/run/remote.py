"""The functions of `bench.run.worker`, as the parent names them. Imports no torch."""

from typing import TYPE_CHECKING

from bench.workers.entry import remote

if TYPE_CHECKING:
    from bench.run import worker as worker  # noqa: PLC0414 - exported
else:
    worker = remote("bench.run.worker")
