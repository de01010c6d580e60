# SPDX-License-Identifier: Apache-2.0
"""A node's /dev made of links to a device that every machine has: no root needed."""

from pathlib import Path

import pytest


class Node:
    """A directory that stands for a node's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "dev").mkdir()

    def plug(self, *names: str) -> None:
        for name in names:
            path = self.root / "dev" / name
            path.parent.mkdir(exist_ok=True)
            path.symlink_to("/dev/null")

    def unplug(self, *names: str) -> None:
        for name in names:
            (self.root / "dev" / name).unlink()

    def put_file(self, name: str) -> None:
        (self.root / "dev" / name).write_text("")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)
