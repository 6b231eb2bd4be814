"""Let the C library keep freed memory for the next layer.

By default glibc hands every large freed tensor back to the kernel, which zeroes new pages for the
next one: on a CPU that costs a forward pass an eighth of its time.
"""

import ctypes
import sys

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_KEEP_BYTES = 2**30


def keep_freed_memory() -> None:
    """Serve large tensors from the heap and do not shrink it below 1 GiB; Linux with glibc only."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_TOP_PAD, 64 * 2**20)
