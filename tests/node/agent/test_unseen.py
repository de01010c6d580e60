# SPDX-License-Identifier: Apache-2.0
"""A process that keeps whoever looks at it waiting is not waited for, and named.

It executes a program, for which the kernel closes a file of a file server that never answers; until
then the kernel keeps locked what /proc says of it.
"""

import errno
import os
import signal
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.holders import search
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import DeviceNode

from .containers import Lab
from .test_holders import Mount, granted
from .waiting import until

INIT, LOOKUP, GETATTR, OPEN, FLUSH, FORGETS = 26, 1, 3, 14, 25, (2, 42)
REQUEST_BYTES = 1 << 17


def attributes(inode: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o644
    return struct.pack("<6Q10I", inode, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


ANSWERS = {  # to requests about one file; fuse(4)
    INIT: struct.pack("<IIIIHHIIHH28x", 7, 31, 0, 0, 12, 9, 4096, 1, 1, 0),
    LOOKUP: struct.pack("<QQQQII", 2, 0, 100, 100, 0, 0) + attributes(2),
    OPEN: struct.pack("<QII", 1, 0, 0),
}


class Server:
    """A file server that answers all but what a close waits for, until it is told to."""

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)
        self._waiting: list[int] = []  # the numbers of such requests
        self.is_asked_to_close = threading.Event()
        self._lets_close = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def let_close(self) -> None:
        """Answer after all; nothing else ends the wait, KILL neither."""
        self._lets_close.set()
        while self._waiting:
            self._answer(self._waiting.pop(), None)

    def _serve(self) -> None:
        with closing(self._fd):
            while (request := self._request()) is not None:
                _, operation, number, inode = struct.unpack_from("<IIQQ", request)
                if operation == FLUSH and not self._lets_close.is_set():
                    self._waiting.append(number)
                    self.is_asked_to_close.set()
                elif operation == GETATTR:
                    self._answer(number, struct.pack("<QII", 100, 0, 0) + attributes(inode))
                elif operation not in FORGETS:
                    self._answer(number, ANSWERS.get(operation))

    def _request(self) -> bytes | None:
        """Return the next one, None when nothing is mounted any more."""
        while True:
            try:
                return os.read(self._fd, REQUEST_BYTES)
            except PermissionError:  # it is not mounted yet
                self._lets_close.wait(0.01)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return None
                if error.errno != errno.ENOENT:  # who asked waits no more
                    raise

    def _answer(self, number: int, said: bytes | None) -> None:
        error, text = (-errno.ENOSYS, b"") if said is None else (0, said)
        with suppress(FileNotFoundError):  # who asked waits no more
            os.write(self._fd, struct.pack("<IiQ", 16 + len(text), error, number) + text)


@dataclass(frozen=True)
class Scene:
    """A container with such a process."""

    mount: Mount
    server: Server
    pid: int

    def is_seen(self) -> bool:
        with suppress(NodeUnavailable):
            self.mount.holders()
            return True
        return False


@pytest.fixture
def scene(
    either: Lab, hold: Path, vcsa: DeviceNode, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    monkeypatch.setattr(search, "WAIT_S", 3.0)
    with ExitStack() as stack:
        fd = stack.enter_context(closing(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)))
        program = stack.enter_context(closing(os.open(hold, os.O_RDONLY | os.O_CLOEXEC)))
        mount = granted(either, hold, vcsa, pass_fds=(fd, program))
        inside, server = mount.box.inside, Server(fd)
        inside.tell("make_directory", "/served")
        inside.tell("mount_silent_server", "/served", fd, "40000")
        pid = inside.tell("execute_beside_server", "/served/a", program)
        assert server.is_asked_to_close.wait(10)
        assert pid is not None
        yield Scene(mount, server, pid)
        server.let_close()
        os.kill(pid, signal.SIGKILL)  # its parent does not wait for it: it is nobody else yet


def test_nobody_waits_for_it_and_nothing_is_called_free(scene: Scene) -> None:
    for _ in range(3):  # after the first time at once
        with pytest.raises(NodeUnavailable, match=f"process {scene.pid} of the node keeps"):
            scene.mount.holders()
    scene.mount.box.inside.open("/dev/vcsa")
    scene.server.let_close()
    until(scene.is_seen, what="it goes on")
    (found,) = scene.mount.holders()
    assert found.pid == scene.mount.box.init_pid
