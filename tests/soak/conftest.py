# SPDX-License-Identifier: Apache-2.0
"""The scenarios' world, for rounds without number: `make soak`, never in CI."""

import pytest

from cluster.conftest import api, node, testbed, world

__all__ = ["api", "node", "testbed", "world"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run last what starts another testbed: the others hold on to this one."""
    items.sort(key=lambda item: item.path.name == "test_fresh.py")
