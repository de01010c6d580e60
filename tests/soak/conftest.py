# SPDX-License-Identifier: Apache-2.0
"""The scenarios' world, for rounds without number: `make soak`, never in CI."""

from cluster.conftest import api, node, testbed, world

__all__ = ["api", "node", "testbed", "world"]
