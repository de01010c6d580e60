# SPDX-License-Identifier: Apache-2.0
"""syscall(2) by ctypes, for the calls that Python's `os` does not offer.

The numbers are the kernel's own, so no libc version matters. Every argument is passed as a C long:
ctypes would cut an int to 32 bits. Only this package may call it; the rest of the agent sees one
wrapper per call.
"""

import ctypes
import os
import platform

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

Buffer = ctypes.Array[ctypes.c_char]


def number(*, x86_64: int, aarch64: int) -> ctypes.c_long:
    """Return a call's number on this machine. Raises KeyError on an unknown architecture."""
    return ctypes.c_long({"x86_64": x86_64, "aarch64": aarch64}[platform.machine()])


def syscall(call: ctypes.c_long, *args: int | ctypes.c_long | bytes | Buffer, path: str) -> int:
    """Make one system call; `path` is only what the error will name. Raises OSError."""
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result: int = _libc.syscall(call, *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result
