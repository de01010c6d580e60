# SPDX-License-Identifier: Apache-2.0
"""What a vendor's driver would have made on a node, as far as anything looks at it.

Device nodes of character majors that no driver has registered here: open says ENXIO where the
device filter allows it and EPERM where not. Trees below /proc, /sys and /usr are mounts in the
node's own mount namespace. All of it is undone at the end, in reverse order.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from devicemount_testbed.cluster import Testbed
from vendors.answers import Json

NAME = "stand-in"  # what mounts says of ours
SCRATCH = f"/run/{NAME}"


class NotHarmless(Exception):
    """A driver of this machine has that number."""


class NodeFiles:
    """Makes files on one node, and knows how to take them away."""

    def __init__(self, testbed: Testbed, name: str, undo: ExitStack) -> None:
        self._testbed = testbed
        self._undo = undo
        self.name = name
        self.root = testbed.node_root(name)

    def at(self, path: str) -> Path:
        """Return where the node's file is, seen from the machine.

        An absolute symlink of the node would lead to the machine's own files.
        """
        return self.root / path.replace("/var/run/", "/run/", 1).lstrip("/")

    def run(self, *argv: str) -> str:
        done = self._testbed.exec(self.name, list(argv))
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def device(self, node: Json) -> None:
        """Make a device node: {path, major, minor, mode, uid, gid} as the data has it."""
        if node["major"] in _registered_majors():
            raise NotHarmless(f"{node['path']}: major {node['major']} has a driver here")
        path = self.at(node["path"])
        self.directory(str(Path(node["path"]).parent))
        path.unlink(missing_ok=True)  # of a run that was killed
        os.mknod(path, stat.S_IFCHR, os.makedev(node["major"], node["minor"]))
        path.chmod(int(node["mode"], 8))
        os.chown(path, node["uid"], node["gid"])
        self._undo.callback(path.unlink, missing_ok=True)

    def directory(self, path: str) -> None:
        """Make it and what is missing above it."""
        missing = self.at(path)
        above = []
        while not missing.is_dir():
            above.append(missing)
            missing = missing.parent
        for one in reversed(above):
            one.mkdir()
            self._undo.callback(_remove_directory, one)

    def file(self, path: str, content: str | bytes = b"") -> None:
        self.directory(str(Path(path).parent))
        target = self.at(path)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        if target.parent.name == "bin":
            target.chmod(0o755)  # a program; vendors look for it as one
        self._undo.callback(target.unlink, missing_ok=True)

    def link(self, path: str, target: str) -> None:
        self.directory(str(Path(path).parent))
        self.at(path).unlink(missing_ok=True)
        self.at(path).symlink_to(target)
        self._undo.callback(self.at(path).unlink, missing_ok=True)

    def empty(self, path: str) -> None:
        """Hide what is below the path by an empty file system."""
        self._mount(path, "-t", "tmpfs", "-o", "mode=755", NAME)

    def forget(self, path: str) -> None:
        """Remove at the end what somebody else has put there."""
        self._undo.callback(self.at(path).unlink, missing_ok=True)

    def layer(self, path: str) -> None:
        """Let what is written below the path be gone at the end, and stay off the machine."""
        scratch = f"{SCRATCH}/{secrets.token_hex(4)}"
        for name in ("upper", "work"):
            self.directory(f"{scratch}/{name}")
        self._undo.callback(self.run, "rm", "-rf", f"{scratch}/work/work", f"{scratch}/upper")
        layers = f"lowerdir={path},upperdir={scratch}/upper,workdir={scratch}/work"
        self._mount(path, "-t", "overlay", "-o", layers, NAME)

    def say(self, path: str, text: str) -> None:
        """Let a file of /proc say something else."""
        said = f"{SCRATCH}/{secrets.token_hex(4)}"
        self.file(said, text)
        self._mount(path, "--bind", said)

    def _mount(self, path: str, *argv: str) -> None:
        while self._is_left(path):
            self.run("umount", "--lazy", path)
        self.run("mount", *argv, path)
        # lazily: a program that was started meanwhile may have a library of it in use
        self._undo.callback(self.run, "umount", "--lazy", path)

    def _is_left(self, path: str) -> bool:
        """Tell whether something of a run that was killed is mounted there."""
        mounts = (self.root.parent / "mounts").read_text().splitlines()
        found = (line.split()[:2] for line in mounts)
        return any(
            place == path and (name == NAME or path == "/proc/devices") for name, place in found
        )


@contextmanager
def node_files(testbed: Testbed, node: str) -> Iterator[NodeFiles]:
    with ExitStack() as undo:
        yield NodeFiles(testbed, node, undo)


def lay_out(files: NodeFiles, root: Json) -> None:
    """Make a fake root of runtime-resolution.json: its files, directories, links and nodes."""
    for path in _hidden(root):
        files.empty(path)
    if any(_is_below(path, "/usr") for path in _paths(root)):
        files.layer("/usr")
    for path, text in root["files"].items():
        if path == "/proc/devices":
            files.say(path, _with_drivers(text))
        elif not _is_below(path, "/sys/module"):  # cannot be added to, and must not be hidden
            files.file(path, text)
    for path in root["empty_files"]:
        files.file(path)
    for path in root["directories"]:
        files.directory(path)
    for link in root["links"]:
        files.link(link["path"], link["target"])
    for node in root["device_nodes"]:
        files.device(node)


def _paths(root: Json) -> list[str]:
    links = [link["path"] for link in root["links"]]
    return [*root["files"], *root["empty_files"], *root["directories"], *links]


def _hidden(root: Json) -> list[str]:
    """Return the kernel's directories that must be hidden to have something new in them."""
    return [
        top
        for top in ("/proc/driver", "/sys/bus/pci/devices")
        if any(_is_below(path, top) for path in _paths(root))
    ]


def _is_below(path: str, top: str) -> bool:
    return Path(path).is_relative_to(top)


def _with_drivers(wanted: str) -> str:
    """Return this machine's /proc/devices with the character devices of another one added."""
    ours = Path("/proc/devices").read_text()
    lines = wanted.partition("Block devices:")[0].splitlines()[1:]
    new = [line for line in lines if line.strip() and line not in ours.splitlines()]
    return ours.replace("Character devices:\n", "Character devices:\n" + "\n".join(new) + "\n", 1)


def _registered_majors() -> set[int]:
    characters = Path("/proc/devices").read_text().partition("Block devices:")[0]
    return {int(line.split()[0]) for line in characters.splitlines()[1:] if line.strip()}


def _remove_directory(path: Path) -> None:
    """Remove it unless somebody else has put something there."""
    try:
        path.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        if not any(path.iterdir()):
            raise
