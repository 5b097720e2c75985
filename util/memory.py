"""What happens when memory runs out, and memory that is kept from one step to the next."""

import ctypes
import gc
import platform
from functools import cache

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")   # in messages of torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3         # parameters of glibc's mallopt, from its malloc.h
GLIBC_KEEPS, KEPT = 2 ** 25, 3 * 2 ** 25            # bytes of the largest blocks that stay when freed
INT_MAX = 2 ** 31 - 1


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that the GPU, or the machine, has no memory left."""
    import torch  # here, so that --help need not wait for it

    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library where it is glibc, which has the calls below."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def keep_freed_memory(keep: bool = True) -> None:
    """Let the process keep freed tensors of up to 96 MB for the next ones; or return those above 32 MB, as glibc does.

    Memory that was returned costs a page fault per 4 KiB when it is asked for again: a fifth of a step of the FFHQ
    network on a CPU. Larger tensors than these would leave holes that nothing fills, nearly as large as all that is in
    use. Nothing changes where the C library is not glibc, or an old one that takes no more than 32 MB.
    """
    if (glibc := _glibc()) is not None:
        largest, free_at_the_end = (KEPT, INT_MAX) if keep else (GLIBC_KEEPS, 2 * GLIBC_KEEPS)
        glibc.mallopt(M_MMAP_THRESHOLD, largest)
        glibc.mallopt(M_TRIM_THRESHOLD, free_at_the_end)


def free_memory() -> None:
    """Give back what nobody holds any more."""
    import torch

    gc.collect()
    if (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
