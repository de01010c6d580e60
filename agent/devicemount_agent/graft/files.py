# SPDX-License-Identifier: Apache-2.0
"""The agent's own files for containers: in its tmpfs, bound read-only into them.

    <root>/<container id>/shown/   is /run/devicemount in the container
    <root>/<container id>/texts/   what is bound over single files there
    <root>/<container id>/names/   which files are in shown/, empty
    <root>/<container id>/nodes/   device files, mounted where none can be made; nobody else's

Each is replaced in one step. Nothing that a container sees is ever opened by us: with CAP_SYS_ADMIN
it can make the mount writable again, and put a pipe there that would be waited for.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from devicemount_agent.graft.nodes import Permissions, set_permissions
from devicemount_agent.graft.numbers import mknod_arguments
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import ContainerID, DeviceNode

_DIRECTORY_MODE = 0o755  # whatever user the container's processes run as
_NODES_MODE = 0o700  # a device file of the agent's is not for the node's users
_FILE_MODE = 0o644


class Files:
    """All of the node's."""

    def __init__(self, root: Path) -> None:
        """`root` leads over no symlink: what is in it is bound by its path."""
        self.root = root
        self._told: dict[ContainerID, dict[str, str]] = {}  # by this process

    def shown(self, container_id: ContainerID) -> Path:
        """Return the directory that the container is shown; `make` makes it."""
        return self.root / container_id / "shown"

    def make(self, container_id: ContainerID) -> Path:
        """Return the same, made if it is not there: what is bound must keep its number."""
        return _made(self.shown(container_id))

    def text(self, container_id: ContainerID, text: str) -> Path:
        """Return a file with this text, made if it is not there; its name says what is in it."""
        content = text.encode()
        path = _made(self.root / container_id / "texts") / hashlib.sha256(content).hexdigest()
        if not path.exists():
            _replace(path, content)
        return path

    def node(self, container_id: ContainerID, node: DeviceNode, permissions: Permissions) -> Path:
        """Return a device file, made if it is not there; its name says what it is, and where."""
        directory = _made(self.root / container_id / "nodes", mode=_NODES_MODE)
        number = node.number
        where = hashlib.sha256(node.path.encode()).hexdigest()
        path = directory / f"{number.kind}-{number.major}-{number.minor}-{where}"
        if not path.exists():
            _make_node(path, node, permissions)
        return path

    def show(self, container_id: ContainerID, wanted: Mapping[str, str]) -> None:
        """Make exactly these files what the container is shown. Idempotent."""
        told = self._told.pop(container_id, {})
        shown, names = self.make(container_id), _made(self._names(container_id))
        for name in self.names(container_id) - wanted.keys():
            (shown / name).unlink(missing_ok=True)
            (names / name).unlink()
        for name, text in wanted.items():
            if told.get(name) != text:
                (names / name).touch()
                _replace(shown / name, text.encode())
        self._told[container_id] = dict(wanted)

    def names(self, container_id: ContainerID) -> frozenset[str]:
        """Return what the container is shown now."""
        directory = self._names(container_id)
        if not directory.is_dir():
            return frozenset()
        return frozenset(path.name for path in directory.iterdir())

    def containers(self) -> tuple[ContainerID, ...]:
        """Return the containers for which there are files."""
        if not self.root.is_dir():
            return ()
        return tuple(ContainerID(path.name) for path in self.root.iterdir())

    def forget(self, container_id: ContainerID) -> None:
        """Remove the files of a container. What is mounted still leads to nothing any more."""
        self._told.pop(container_id, None)
        shutil.rmtree(self.root / container_id, ignore_errors=True)

    def _names(self, container_id: ContainerID) -> Path:
        return self.root / container_id / "names"


def _made(path: Path, *, mode: int = _DIRECTORY_MODE) -> Path:
    if not path.is_dir():
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)
    return path


def _make_node(path: Path, node: DeviceNode, permissions: Permissions) -> None:
    """Make it in one step, complete: several mounts are planned at once."""
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        made = Path(directory, "node")
        mode, device = mknod_arguments(node.number, mode=0o600)
        os.mknod(made, mode, device)
        with closing(os.open(made, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
            set_permissions(fd, permissions)
        with suppress(FileExistsError):
            os.link(made, path)


def _replace(path: Path, content: bytes) -> None:
    """Put the content there in one step: written beside the directory, which nobody is shown.

    A container's texts are made in threads, as several mounts are planned at once.
    """
    fd, written = tempfile.mkstemp(dir=path.parent.parent)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        os.fchmod(fd, _FILE_MODE)
    Path(written).rename(path)
