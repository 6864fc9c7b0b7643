"""Memory that a network's activations leave is kept for the next ones, where the C library can be told to.

By default glibc gives blocks of tens of MB back to the kernel when they are freed, and the kernel hands out zeroed
pages when they are asked for again: with batch norm that is a tenth of a training step on a CPU.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**31 - 1


def keep_large_blocks() -> bool:
    """Let malloc keep freed blocks of any size in this process, up to 2 GiB of them; whether it understood.

    A setting of the whole process: for programs (the command line, a sweep's workers), never on import.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST))
