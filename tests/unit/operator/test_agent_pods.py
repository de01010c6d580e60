# SPDX-License-Identifier: Apache-2.0
"""Which agent answers for which node."""

from typing import Any

import pytest

from devicemount_operator.agent_pods import addresses_of
from devicemount_operator.decide.observation import NodeName

OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def pod(ip: str | None, *, created: str = OLD, phase: str = "Running", **meta: str) -> Any:
    return {
        "metadata": {"creationTimestamp": created, **meta},
        "spec": {"nodeName": "node1"},
        "status": {"phase": phase, "podIP": ip},
    }


@pytest.mark.parametrize(
    ("pods", "address"),
    [
        ([pod("10.0.0.1")], "10.0.0.1"),
        ([pod("10.0.0.2", created=NEW), pod("10.0.0.1")], "10.0.0.2"),
        ([pod("10.0.0.1"), pod(None, created=NEW, phase="Pending")], "10.0.0.1"),
        ([pod("10.0.0.1", deletionTimestamp=NEW)], None),
        ([pod("10.0.0.1", phase="Failed")], None),
        ([], None),
    ],
    ids=[
        "the only one",
        "the newest one",
        "not one that has no address yet",
        "not one that is going",
        "not one that has ended",
        "none",
    ],
)
def test_the_address_of_a_nodes_agent(pods: list[Any], address: str | None) -> None:
    assert addresses_of(pods).get(NodeName("node1")) == address
