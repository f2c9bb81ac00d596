"""The errors that say that memory ran out. Worker side."""

import torch

ALLOCATION_FAILURES = (  # where it is a plain RuntimeError: torch's CPU allocator, oneDNN, CUDA's driver and libraries
    "out of memory",
    "ALLOC_FAILED",
    "unable to find an engine to execute",  # cuDNN, of which every engine wanted more workspace than there was
    "can't allocate memory",
    "not enough memory",
    "could not create a memory",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of the types OutOfMemoryError, MemoryError or RuntimeError says that memory ran out."""
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return True
    if any(phrase in str(error) for phrase in ALLOCATION_FAILURES):
        return True
    before = error.__context__  # running out of memory while a graph is captured breaks the capture, which raises anew
    return isinstance(before, torch.OutOfMemoryError | MemoryError | RuntimeError) and is_out_of_memory(before)
