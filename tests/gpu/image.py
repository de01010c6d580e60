# SPDX-License-Identifier: Apache-2.0
"""What an image brings, in a container of the lab: this machine's own programs and libraries.

The driver's are among them, as NVIDIA's runtime puts them into a container that asks for no GPU.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from devicemount_agent.kernel import making
from devicemount_agent.kernel.files import closing
from devicemount_agent.kernel.mount import (
    MOUNT_ATTR_RDONLY,
    attaching,
    cloning_tree,
    mount_setattr,
)
from devicemount_agent.kernel.namespace import descriptors_of, within
from node.agent.containers import Box

NOT_OF_AN_IMAGE = {"dev", "proc", "sys", "run", "tmp"}
OF_A_RUNTIME = ("proc", "sys", "dev/null")


def entries() -> Iterator[Path]:
    """Yield the directories of this machine that an image would have, and links to them."""
    for entry in Path("/").iterdir():
        if entry.name not in NOT_OF_AN_IMAGE and (entry.is_symlink() or entry.is_dir()):
            yield entry


def furnish(box: Box, *, owner: making.Owner) -> None:
    """Let programs of this machine run in a container that has nothing but an empty /dev."""
    with closing(os.open(box.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root_fd:
        for entry in entries():
            if entry.is_symlink():
                making.make_symlink(str(entry.readlink()), root_fd, entry.name, owner=owner)
            else:
                making.make_directory(root_fd, entry.name, 0o755, owner=owner)
                bind(box, entry, attributes=MOUNT_ATTR_RDONLY)
        for name in ("tmp", "dev/shm"):
            making.make_directory(root_fd, name, 0o777, owner=owner)
        for name in OF_A_RUNTIME:
            source = Path("/", name)
            make = making.make_directory if source.is_dir() else making.make_file
            make(root_fd, name, 0o755, owner=owner)
            bind(box, source)


def bind(box: Box, source: Path, *, attributes: int = 0) -> None:
    """Show a directory or file of this machine at its own path, with all that is mounted below."""
    place = box.root / source.relative_to("/")
    with closing(os.open(source, os.O_PATH | os.O_CLOEXEC)) as source_fd:
        (tree_fd,) = descriptors_of([cloning_tree(source_fd)], path=str(source))
    with closing(tree_fd), closing(os.open(place, os.O_PATH | os.O_CLOEXEC)) as place_fd:
        mount_setattr(tree_fd, sets=attributes)
        (result,) = within(box.pidfd, [attaching(tree_fd, place_fd)])
        if result < 0:
            raise OSError(-result, os.strerror(-result), str(source))
