# SPDX-License-Identifier: Apache-2.0
"""A node made of a directory with device nodes that nobody can open."""

import os
from pathlib import Path

import pytest

from .node_tree import NodeTree


@pytest.fixture
def node(tmp_path: Path) -> NodeTree:
    if os.geteuid() != 0:
        pytest.skip("only root can make device nodes")
    return NodeTree(tmp_path)
