# SPDX-License-Identifier: Apache-2.0
"""A process that does what it is told, line by line: the container's side of the tests.

Started in a mount namespace of its own; with a root it becomes what a container's first process is.
"""

import contextlib
import ctypes
import errno
import fcntl
import itertools
import json
import mmap
import os
import pathlib
import resource
import shutil
import signal
import socket
import struct
import sys
import termios
import threading
import time

HERE = -100  # AT_FDCWD
CLONE_FILES = 0x400
CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000
RENAME_EXCHANGE = 2
MNT_DETACH = 2
MS_MOVE = 0x2000
SYS_EXIT = 60
SYS_IO_URING_SETUP, SYS_IO_URING_ENTER, SYS_IO_URING_REGISTER = 425, 426, 427
IORING_REGISTER_FILES = 2
IORING_OP_SPLICE = 30
IORING_OFF_SQES = 0x10000000
IO_URING_PARAMS_BYTES = 120
SQ_OFF_TAIL = 44  # in them
PR_SET_PDEATHSIG = 1
SIG_IGN = 1
libc = ctypes.CDLL(None, use_errno=True)
kept: list[object] = []
main_thread_ends = threading.Event()
to_unshare: list[int] = []
opening_ends = threading.Event()
opened = {"allowed": 0, "refused": 0, "forbidden": 0}


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


def wait_for_server(path: str, fd: int) -> int:
    """Leave a child behind that asks a file server, whose end it has not, and ends when answered.

    Until then it waits in the kernel, where nobody can stop it.
    """
    pid = os.fork()
    if pid == 0:
        os.close(fd)
        with contextlib.suppress(OSError):
            pathlib.Path(path).stat()
        os._exit(0)
    return pid


def execute_beside_server(path: str, program: int) -> int:
    """Leave a child behind that executes a program, which closes a file of a file server."""
    pid = os.fork()
    if pid == 0:
        try:
            os.open(path, os.O_RDWR | os.O_CLOEXEC)
            os.execve(program, ["program"], {})  # noqa: S606
        finally:
            os._exit(1)
    return pid


def make_directory(path: str) -> None:
    pathlib.Path(path).mkdir()


def make_file(path: str) -> None:
    pathlib.Path(path).touch()


def unmount(target: str) -> None:
    check(libc.umount2(target.encode(), 0))


def chroot(root: str) -> None:
    os.chroot(root)
    os.chdir("/")


def enter_root(root: str) -> None:
    """Make a mount the root of this mount namespace too, as a runtime does."""
    os.chdir(root)
    mount(".", "/", "", MS_MOVE)
    chroot(".")


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


def fork_child() -> int:
    """Leave a child behind that has what this process has, in a session of its own."""
    pid = os.fork()
    if pid == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        while True:
            time.sleep(3600)
    return pid


def keep_moving(for_s: int) -> None:
    """Leave a child behind that has what this process has, and goes on in a child of its own."""
    end_s = time.monotonic() + for_s
    if os.fork() == 0:
        os.setsid()
        while time.monotonic() < end_s:
            if os.fork():
                os._exit(0)
        os._exit(0)


def put_in_flight(fd: int) -> None:
    """Send a descriptor to a socket of one's own, and close it."""
    sender, receiver = socket.socketpair()
    socket.send_fds(sender, [b"x"], [fd])
    os.close(fd)
    kept.extend((sender, receiver))


def receive_from_flight() -> int:
    receiver = kept[-1]
    assert isinstance(receiver, socket.socket)
    return socket.recv_fds(receiver, 1, 1)[1][0]


def detach_receiver() -> int:
    """Return the descriptor in which one is in flight: the only one of that socket."""
    receiver = kept.pop()
    assert isinstance(receiver, socket.socket)
    return receiver.detach()


def listen() -> int:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")
        listener.listen()
        return listener.detach()


def duplicate(fd: int) -> int:
    return os.dup(fd)


def set_up_ring() -> tuple[int, int]:
    """Return an io_uring for one request, and where its queue's tail is."""
    parameters = ctypes.create_string_buffer(IO_URING_PARAMS_BYTES)
    ring = libc.syscall(SYS_IO_URING_SETUP, 1, parameters)
    check(ring)
    return ring, struct.unpack_from("<I", parameters, SQ_OFF_TAIL)[0]


def submit(entry: bytes) -> None:
    ring, tail = set_up_ring()
    with mmap.mmap(ring, mmap.PAGESIZE, offset=IORING_OFF_SQES) as entries:
        entries.write(entry)
    with mmap.mmap(ring, mmap.PAGESIZE) as queue:
        struct.pack_into("<I", queue, tail, 1)
    check(libc.syscall(SYS_IO_URING_ENTER, ring, 1, 0, 0, None, 0))


def request(operation: int, fd: int) -> None:
    """Ask io_uring for what is not there yet, and close the descriptor."""
    submit(struct.pack("<BxxxI", operation, fd))
    os.close(fd)


def splice_in_worker(fd: int) -> None:
    """Let a worker of io_uring wait for something to write there."""
    source, sink = os.pipe()
    submit(struct.pack("<BxxxIqqI16xI", IORING_OP_SPLICE, fd, -1, -1, 1, source))
    kept.append(sink)


def read_in_thread(fd: int) -> None:
    """Let a thread wait for something to read there."""

    def run() -> None:
        with contextlib.suppress(OSError):  # interrupted, it reads again from what is closed by now
            os.read(fd, 1)

    threading.Thread(target=run, daemon=True).start()


def register_file(fd: int) -> None:
    """Register a descriptor with io_uring, and close it."""
    ring, _ = set_up_ring()
    files = (ctypes.c_int * 1)(fd)
    check(libc.syscall(SYS_IO_URING_REGISTER, ring, IORING_REGISTER_FILES, files, 1))
    os.close(fd)


def open_many(path: str, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
    for _ in range(count):
        os.open(path, os.O_RDONLY)


def take_terminal(path: str) -> int:
    """Make a terminal the controlling one, and keep it open as /dev/tty only."""
    libc.signal(signal.SIGHUP, SIG_IGN)
    os.setsid()
    fd = os.open(path, os.O_RDWR)
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
    tty = os.open("/dev/tty", os.O_RDWR)
    os.close(fd)
    return tty


def leave_terminal(fd: int) -> None:
    fcntl.ioctl(fd, termios.TIOCNOTTY)


def keep_writing(fd: int) -> None:
    def run() -> None:
        while True:
            os.pwrite(fd, b"x", 0)
            time.sleep(0.001)

    threading.Thread(target=run, daemon=True).start()


def ignore_term() -> None:
    libc.signal(signal.SIGTERM, SIG_IGN)


def keep_exchanging(one: str, other: str) -> None:
    """Swap two names, in one step each time, until the end."""

    def run() -> None:
        while True:
            libc.renameat2(HERE, one.encode(), HERE, other.encode(), RENAME_EXCHANGE)

    threading.Thread(target=run, daemon=True).start()


def mount_proc(target: str) -> None:
    pathlib.Path(target).mkdir()
    mount("proc", target, "proc", 0)


def keep_swapping(path: str, *led_to: str) -> None:
    """Be now a directory, now a link, a pipe or a mount at that path, until the end."""
    place, other = pathlib.Path(path), pathlib.Path(f"{path}.else")

    def clear(name: pathlib.Path) -> None:
        if name.is_symlink() or not name.is_dir():
            name.unlink(missing_ok=True)
        else:
            shutil.rmtree(name, ignore_errors=True)

    def exchange() -> None:
        libc.renameat2(HERE, bytes(place), HERE, bytes(other), RENAME_EXCHANGE)

    def swap(turn: int, pause_s: float) -> None:
        exotic = turn % (len(led_to) + 2)
        if exotic > len(led_to):
            libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, None)
            time.sleep(pause_s)
            libc.umount2(bytes(place), MNT_DETACH)
            return
        if exotic == len(led_to):
            os.mkfifo(other)
        else:
            other.symlink_to(led_to[exotic])
        exchange()
        time.sleep(pause_s)
        exchange()
        clear(other)

    def run() -> None:
        place.mkdir()
        for turn in itertools.count():
            swap(turn, turn % 7 * 0.0004)
            time.sleep(turn % 11 * 0.001)

    threading.Thread(target=run, daemon=True).start()


def keep_opening(allowed: list[str], forbidden: list[str]) -> None:
    """Open all of them in turn, without a pause, and count what should not be."""

    def run() -> None:
        while not opening_ends.is_set():
            for path in allowed:
                try:
                    os.close(os.open(path, os.O_RDONLY))
                except OSError:
                    opened["refused"] += 1
                opened["allowed"] += 1
            for path in forbidden:
                try:
                    os.close(os.open(path, os.O_RDONLY))
                except PermissionError:
                    continue
                opened["forbidden"] += 1

    threading.Thread(target=run, daemon=True).start()


def end_opening() -> None:
    opening_ends.set()


def count_opened(what: str) -> int:
    return opened[what]


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
        wait_for_server,
        execute_beside_server,
        make_directory,
        make_file,
        unmount,
        chroot,
        enter_root,
        open_file,
        close,
        map_file,
        open_in_thread,
        fork_child,
        keep_moving,
        put_in_flight,
        receive_from_flight,
        detach_receiver,
        listen,
        duplicate,
        request,
        splice_in_worker,
        read_in_thread,
        register_file,
        open_many,
        take_terminal,
        leave_terminal,
        keep_writing,
        ignore_term,
        keep_exchanging,
        keep_swapping,
        keep_opening,
        end_opening,
        count_opened,
        mount_proc,
        end_main_thread,
        become,
    )
}


def serve() -> None:
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        if name == "unshare":  # by the main thread, alone
            to_unshare.append(CLONE_NEWNS | (CLONE_NEWUSER if arguments else 0))
            main_thread_ends.set()
            return
        try:
            answer = ["value", COMMANDS[name](*arguments)]
        except OSError as error:
            answer = ["errno", error.errno]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(0)


def enter_users() -> None:
    """Enter a user namespace, and one of mounts that belongs to it; become its root."""
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    sys.stdout.write("unmapped\n")
    sys.stdout.flush()
    sys.stdin.readline()
    become(0, 0)


if sys.argv[1:]:
    enter_users()
threading.Thread(target=serve).start()
while main_thread_ends.wait() and to_unshare:
    main_thread_ends.clear()
    flags = to_unshare.pop()
    while libc.unshare(flags) < 0 and ctypes.get_errno() == errno.EINVAL:
        time.sleep(0.001)  # the other thread is about to end
    sys.stdout.write('["value", null]\n')
    sys.stdout.flush()
    threading.Thread(target=serve).start()
libc.syscall(SYS_EXIT, 0)  # this thread only
