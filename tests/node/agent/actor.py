# SPDX-License-Identifier: Apache-2.0
"""A process that does what it is told, line by line: the container's side of the tests.

Started in a mount namespace of its own; with a root it becomes what a container's first process is.
"""

import ctypes
import json
import mmap
import os
import pathlib
import sys
import threading

HERE = -100  # AT_FDCWD
CLONE_FILES = 0x400
RENAME_EXCHANGE = 2
SYS_EXIT = 60
libc = ctypes.CDLL(None, use_errno=True)
kept: list[object] = []
main_thread_ends = threading.Event()


def check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def join(procs: str) -> None:
    pathlib.Path(procs).write_text(str(os.getpid()))


def mount(source: str, target: str, kind: str, flags: int) -> None:
    check(libc.mount(source.encode(), target.encode(), kind.encode(), flags, None))


def mount_silent_server(target: str, fd: int, mode: str) -> None:
    """Mount FUSE, whose requests nobody answers."""
    data = f"fd={fd},rootmode={mode},user_id=0,group_id=0".encode()
    check(libc.mount(b"silent", target.encode(), b"fuse", 0, data))


def unmount(target: str) -> None:
    check(libc.umount2(target.encode(), 0))


def chroot(root: str) -> None:
    os.chroot(root)
    os.chdir("/")


def open_file(path: str, flags: int) -> int:
    return os.open(path, flags)


def close(fd: int) -> None:
    os.close(fd)


def map_file(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    kept.append(mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_PRIVATE))
    os.close(fd)


def open_in_thread(path: str) -> None:
    """Open in a thread that has a descriptor table of its own, and nowhere else."""
    opened = threading.Event()

    def run() -> None:
        check(libc.unshare(CLONE_FILES))
        os.open(path, os.O_RDONLY)
        opened.set()
        threading.Event().wait()

    threading.Thread(target=run, daemon=True).start()
    assert opened.wait(5)


def keep_exchanging(one: str, other: str) -> None:
    """Swap two names, in one step each time, until the end."""

    def run() -> None:
        while True:
            libc.renameat2(HERE, one.encode(), HERE, other.encode(), RENAME_EXCHANGE)

    threading.Thread(target=run, daemon=True).start()


def end_main_thread() -> None:
    main_thread_ends.set()


def become(uid: int, gid: int) -> None:
    os.setgid(gid)
    os.setuid(uid)


COMMANDS = {
    f.__name__: f
    for f in (
        join,
        mount,
        mount_silent_server,
        unmount,
        chroot,
        open_file,
        close,
        map_file,
        open_in_thread,
        keep_exchanging,
        end_main_thread,
        become,
    )
}


def serve() -> None:
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = ["value", COMMANDS[name](*arguments)]
        except OSError as error:
            answer = ["errno", error.errno]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(0)


threading.Thread(target=serve).start()
main_thread_ends.wait()
libc.syscall(SYS_EXIT, 0)  # this thread only
