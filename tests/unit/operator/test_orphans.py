# SPDX-License-Identifier: Apache-2.0
"""How what a DeviceMount left is given back."""

from typing import Any

import pytest

from devicemount_operator import errors, shadow_pod
from devicemount_operator.act import Actor
from devicemount_operator.agents import AgentError
from devicemount_operator.caches import Shadows
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide import decision as do
from devicemount_operator.decide.decision import RemovePolicy
from devicemount_operator.decide.observation import Silence
from devicemount_operator.decide.proof import SILENT_TIMES
from devicemount_operator.memory import Memory
from devicemount_operator.orphans import Orphans
from devicemount_operator.reasons import Reason
from devicemount_operator.recorder import Recorder
from unit.operator import given

IMAGE = "hold:1"


class NoMounts(Cluster):
    """An API server without any DeviceMount."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = nodes

    async def get_mount(self, key: ObjectKey) -> dict[str, Any]:
        raise errors.NotFound(f"no DeviceMount {key}", status=404)

    async def get_node(self, name: str) -> dict[str, Any]:
        if name in self.nodes:
            return {"metadata": {"name": name}}
        raise errors.NotFound(f"no node {name}", status=404)

    async def create_event(self, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        return body


class Noted(Actor):
    """Does nothing but to note what it was asked for."""

    def __init__(self) -> None:
        self.is_silent = False
        self.removed: list[RemovePolicy] = []
        self.discharged: list[do.By] = []
        self.deleted: list[str] = []

    async def remove(self, mount_uid: str, memory: Memory, action: do.Remove) -> None:
        self.removed.append(action.policy)
        if self.is_silent:
            raise AgentError(Reason.AGENT_UNAVAILABLE, "no agent runs on node node1")

    def discharge(self, mount_uid: str, memory: Memory, action: do.Discharge) -> None:
        self.discharged.append(action.proof.by)

    async def delete_shadow_pod(self, mount_uid: str, action: do.DeleteShadowPod) -> None:
        self.deleted.append(action.name)


@pytest.mark.parametrize(
    ("change", "policies"),
    [
        ({}, [RemovePolicy.WAIT]),
        ({"metadata": {"deletionTimestamp": "2026-11-26T07:00:00Z"}}, [RemovePolicy.LOST]),
        ({"status": {"phase": "Failed"}}, [RemovePolicy.LOST]),
    ],
    ids=["it stands: nobody is disturbed", "deleted by others: lost", "failed: lost"],
)
async def test_nobody_is_waited_for_when_the_device_will_be_anothers(
    change: dict[str, Any], policies: list[RemovePolicy]
) -> None:
    actor = Noted()
    orphans = orphans_of(actor, NoMounts(), change)
    assert await orphans.release(given.MOUNT_UID, Memory())
    assert actor.removed[: len(policies)] == policies
    assert actor.deleted == [given.SHADOW_NAME]


def orphans_of(actor: Actor, cluster: Cluster, change: dict[str, Any]) -> Orphans:
    """Return what sees a shadow pod, so changed, of a DeviceMount that is gone."""
    pod = shadow_pod.build(
        given.mount(), target=given.target(), ordinal=0, resources=given.COUNTS, image=IMAGE
    )
    pod["metadata"] |= {"uid": "shadow", "resourceVersion": "1", **change.pop("metadata", {})}
    shadows = Shadows()
    shadows.put(pod | change, now=0.0)
    return Orphans(
        cluster=cluster,
        actor=actor,
        shadows=shadows,
        recorder=Recorder(cluster, identity="we"),
        hold_image=IMAGE,
        found=lambda _: None,
    )


@pytest.mark.parametrize(
    ("nodes", "times", "is_released"),
    [
        pytest.param((), SILENT_TIMES, True, id="its node was deleted and its agent is silent"),
        pytest.param((given.NODE,), SILENT_TIMES, False, id="its node lives"),
        pytest.param((), SILENT_TIMES - 1, False, id="its agent may only be busy"),
    ],
)
async def test_a_node_that_is_gone_for_good_is_not_waited_for(
    *, nodes: tuple[str, ...], times: int, is_released: bool
) -> None:
    actor, memory = Noted(), Memory()
    actor.is_silent = True
    memory.unanswered[given.NODE] = Silence(float("-inf"), times)
    orphans = orphans_of(actor, NoMounts(*nodes), {})
    assert await orphans.release(given.MOUNT_UID, memory) is is_released
    assert actor.discharged == ([do.By.NODE] if is_released else [])
    assert actor.deleted == ([given.SHADOW_NAME] if is_released else [])
