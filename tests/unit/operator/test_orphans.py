# SPDX-License-Identifier: Apache-2.0
"""How what a DeviceMount left is given back."""

from typing import Any

import pytest

from devicemount_operator import errors, shadow_pod
from devicemount_operator.act import Actor
from devicemount_operator.caches import Shadows
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide import decision as do
from devicemount_operator.decide.decision import RemovePolicy
from devicemount_operator.memory import Memory
from devicemount_operator.orphans import Orphans
from devicemount_operator.recorder import Recorder
from unit.operator import given

IMAGE = "hold:1"


class NoMounts(Cluster):
    """An API server without any DeviceMount."""

    def __init__(self) -> None:
        pass

    async def get_mount(self, key: ObjectKey) -> dict[str, Any]:
        raise errors.NotFound(f"no DeviceMount {key}", status=404)

    async def create_event(self, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        return body


class Noted(Actor):
    """Does nothing but to note what it was asked for."""

    def __init__(self) -> None:
        self.removed: list[RemovePolicy] = []
        self.deleted: list[str] = []

    async def remove(self, mount_uid: str, memory: Memory, action: do.Remove) -> None:
        self.removed.append(action.policy)

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
    pod = shadow_pod.build(given.mount(), target=given.target(), ordinal=0, image=IMAGE)
    pod["metadata"] |= {"uid": "shadow", "resourceVersion": "1", **change.pop("metadata", {})}
    shadows, actor = Shadows(), Noted()
    shadows.put(pod | change, now=0.0)
    orphans = Orphans(
        cluster=(cluster := NoMounts()),
        actor=actor,
        shadows=shadows,
        recorder=Recorder(cluster, identity="we"),
        hold_image=IMAGE,
        found=lambda _: None,
    )
    assert await orphans.release(given.MOUNT_UID, Memory())
    assert actor.removed[: len(policies)] == policies
    assert actor.deleted == [given.SHADOW_NAME]
