# SPDX-License-Identifier: Apache-2.0
"""What rpc Node is asked and answers."""

import pytest

from devicemount_agent.allocation.facts import ResourceFacts
from devicemount_agent.errors import NotAllowed
from devicemount_agent.model import ResourceName
from devicemount_agent.node import NodeFacts
from devicemount_agent.requests import Policy
from devicemount_agent.wire import (
    GRACE_LIMIT_S,
    NODE_RESOURCES_LIMIT,
    from_facts,
    to_remove,
    to_resources,
)
from devicemount_agent_api.v1 import agent_pb2 as pb


def test_facts_are_said_in_the_order_of_the_question() -> None:
    facts = [
        ResourceFacts(ResourceName("a.b/c"), "generic", False, "", "", "no card"),  # noqa: FBT003
        ResourceFacts(ResourceName("a.b/d"), "d", True, "limits", "not served", ""),  # noqa: FBT003
    ]
    node = NodeFacts("v2", "6.1.0", "containerd 2.2.1", "boot-1", "0.1.0")
    state = from_facts(node, facts)
    said = state.resources
    assert (state.cgroup_mode, state.kernel, state.runtime) == ("v2", "6.1.0", "containerd 2.2.1")
    assert (state.boot_id, state.version) == ("boot-1", "0.1.0")
    assert [state.resource for state in said] == ["a.b/c", "a.b/d"]
    assert (said[0].profile, said[0].serialised, said[0].driver_missing) == (
        "generic",
        False,
        "no card",
    )
    assert (said[1].serialised, said[1].env_only, said[1].refused) == (True, "limits", "not served")


@pytest.mark.parametrize("resources", [["a b"], [""], ["x"] * (NODE_RESOURCES_LIMIT + 1)])
def test_a_question_of_another_shape_is_not_answered(resources: list[str]) -> None:
    with pytest.raises(NotAllowed):
        to_resources(pb.NodeRequest(resources=resources))


def remove_request(**changes: object) -> pb.RemoveRequest:
    key = pb.MountKey(mount_uid="11111111-aaaa", pod_uid="22222222-bbbb")
    epoch = pb.Epoch(lease_created_ns=1, lease_uid="33333333-cccc")
    fields = {"key": key, "epoch": epoch, "policy": pb.TERMINATE, **changes}
    return pb.RemoveRequest(**fields)  # type: ignore[arg-type]


def test_a_termination_says_how_long_and_whom() -> None:
    request = to_remove(remove_request(grace_seconds=GRACE_LIMIT_S, include_main_process=True))
    assert request.policy is Policy.TERMINATE
    assert (request.grace_s, request.include_main_process) == (GRACE_LIMIT_S, True)


@pytest.mark.parametrize(
    "changes",
    [{"grace_seconds": GRACE_LIMIT_S + 1}, {"grace_seconds": -1}, {"policy": 0}, {"policy": 17}],
    ids=str,
)
def test_a_removal_of_another_shape_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(NotAllowed):
        to_remove(remove_request(**changes))
