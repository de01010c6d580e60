# SPDX-License-Identifier: Apache-2.0
"""What rpc Node is asked and answers."""

import pytest

from devicemount_agent.allocation.facts import ResourceFacts
from devicemount_agent.errors import NotAllowed
from devicemount_agent.model import ResourceName
from devicemount_agent.wire import NODE_RESOURCES_LIMIT, from_facts, to_resources
from devicemount_agent_api.v1 import agent_pb2 as pb


def test_facts_are_said_in_the_order_of_the_question() -> None:
    facts = [
        ResourceFacts(ResourceName("a.b/c"), "generic", False, "", "", "no card"),  # noqa: FBT003
        ResourceFacts(ResourceName("a.b/d"), "d", True, "limits", "not served", ""),  # noqa: FBT003
    ]
    said = from_facts(facts).resources
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
