# SPDX-License-Identifier: Apache-2.0
"""Makes files, directories and symlinks that are somebody else's from the start.

A file system of a user namespace takes no file whose owner has no number there, and what is made as
root would not be the container's root's. So a thread that ends with it makes it under other file
system ids, and keeps its capabilities: the directory may be anybody's.
"""

import os
import threading

from devicemount_agent.kernel.syscall import Prepared, made, number, prepared

SYS_MKDIRAT = number(x86_64=258, aarch64=34)
SYS_OPENAT = number(x86_64=257, aarch64=56)
SYS_SYMLINKAT = number(x86_64=266, aarch64=36)
SYS_SETFSUID = number(x86_64=122, aarch64=151)
SYS_SETFSGID = number(x86_64=123, aarch64=152)
SYS_PRCTL = number(x86_64=157, aarch64=167)

PR_GET_SECUREBITS = 27
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2  # capabilities stay although the thread's ids change

Owner = tuple[int, int]  # uid and gid as the node has them; (0, 0): whoever the agent runs as
ROOT_OF_NODE: Owner = (0, 0)


def make_file(directory_fd: int, name: str, mode: int, *, owner: Owner) -> None:
    """Make an empty file. Raises FileExistsError, OSError."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(_made_as(owner, prepared(SYS_OPENAT, directory_fd, os.fsencode(name), flags, mode)))


def make_directory(directory_fd: int, name: str, mode: int, *, owner: Owner) -> None:
    """Make a directory. Raises FileExistsError, OSError."""
    _made_as(owner, prepared(SYS_MKDIRAT, directory_fd, os.fsencode(name), mode))


def make_symlink(target: str, directory_fd: int, name: str, *, owner: Owner) -> None:
    """Make a symlink. Raises FileExistsError, OSError."""
    _made_as(owner, prepared(SYS_SYMLINKAT, os.fsencode(target), directory_fd, os.fsencode(name)))


def _made_as(owner: Owner, call: Prepared) -> int:
    """Make a call as somebody; return what it returns. Raises OSError."""
    result = made(call) if owner == ROOT_OF_NODE else _in_thread(owner, call)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _in_thread(owner: Owner, call: Prepared) -> int:
    bits = made(prepared(SYS_PRCTL, PR_GET_SECUREBITS, 0, 0, 0, 0))
    keeping = prepared(SYS_PRCTL, PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    uid, gid = owner
    results: list[int] = []

    def run() -> None:
        if (kept := made(keeping)) < 0:
            results.append(kept)
            return
        made(prepared(SYS_SETFSGID, gid))  # they return the former id, and fail for nobody
        made(prepared(SYS_SETFSUID, uid))
        results.append(made(call))

    thread = threading.Thread(target=run, name="make-file")
    thread.start()
    thread.join()
    return results[0]
