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
    result = made(prepared(call, *args))
    if result < 0:
        raise OSError(-result, os.strerror(-result), path)
    return result


Prepared = tuple[ctypes.c_long | bytes | Buffer, ...]


def prepared(call: ctypes.c_long, *args: int | ctypes.c_long | bytes | Buffer) -> Prepared:
    """Return a call that only has to be made."""
    return (call, *(ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args))


def made(call: Prepared) -> int:
    """Make a prepared call; return what it returns, or -errno.

    No text is looked up for an error: that could open files by name (kernel/namespace.py).
    """
    result: int = _libc.syscall(*call)
    return result if result >= 0 else -ctypes.get_errno()
