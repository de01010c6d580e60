# SPDX-License-Identifier: Apache-2.0
"""Actions that others answer otherwise than with yes."""

from pathlib import Path
from typing import Any

import pytest

from devicemount_operator import errors
from devicemount_operator.act import Actor
from devicemount_operator.agents import AgentError, Agents, NoIdentity, RemoveCall
from devicemount_operator.caches import Mounts, Shadows
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide import decision as do
from devicemount_operator.decide.observation import GrantPhase
from devicemount_operator.memory import Memory
from devicemount_operator.messages import MountGrants
from devicemount_operator.reasons import Reason
from devicemount_operator.settings import Settings
from unit.operator import given
from unit.operator.given import MOUNT_UID, NODE, PLACE, SHADOW_UID

SETTINGS = Settings(
    namespace="system", identity="a", hold_image="hold:1", tls_directory=Path("/nowhere")
)
REMOVE = do.Remove(place=PLACE, policy=do.RemovePolicy.WAIT, shadow_uids=())
UNAVAILABLE = AgentError(Reason.AGENT_UNAVAILABLE, "no agent runs on node node1")


class Answering(Agents):
    """Answers every Remove with what it is told to."""

    def __init__(self) -> None:
        self.error: AgentError | None = None

    async def remove(self, call: RemoveCall) -> MountGrants:
        if self.error is not None:
            raise self.error
        phase = GrantPhase.REMOVED
        return MountGrants(mount_uid=call.mount_uid, place=call.place, phase=phase, grants=())


class Api(Cluster):
    """Has one DeviceMount, of whatever version and UID it is by now."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.deleted: list[tuple[str, str]] = []

    async def get_mount(self, key: ObjectKey) -> dict[str, Any]:
        return self.raw

    async def delete_mount(self, key: ObjectKey, *, uid: str, version: str) -> dict[str, Any]:
        meta = self.raw["metadata"]
        if (uid, version) != (meta["uid"], meta["resourceVersion"]):
            raise errors.Conflict("it is another by now", status=409)
        self.deleted.append((uid, version))
        marks = {"deletionTimestamp": "2026-11-26T07:00:00Z", "resourceVersion": "99"}
        return {**self.raw, "metadata": {**meta, **marks}}


def actor(
    *, cluster: Cluster | None = None, agents: Agents | None = None, mounts: Mounts | None = None
) -> tuple[Actor, list[str]]:
    woken: list[str] = []
    made = Actor(
        cluster=cluster or Api({}),
        agents=agents or Answering(),
        mounts=mounts or Mounts(),
        shadows=Shadows(),
        settings=SETTINGS,
        wake=woken.append,
    )
    return made, woken


async def test_what_an_agent_does_not_answer_is_counted_in_a_row() -> None:
    agents, memory = Answering(), Memory()
    made, _ = actor(agents=agents)
    agents.error = UNAVAILABLE
    for count in (1, 2):
        with pytest.raises(AgentError):
            await made.remove(MOUNT_UID, memory, REMOVE)
        assert [silence.times for silence in memory.unanswered.values()] == [count]
    agents.error = None
    await made.remove(MOUNT_UID, memory, REMOVE)
    assert memory.unanswered == {}


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(NoIdentity("the operator has no certificate yet"), id="we cannot ask"),
        pytest.param(AgentError(Reason.STALE_REQUEST, "another leads"), id="it refuses"),
    ],
)
async def test_what_says_nothing_of_the_agent_is_not_counted(error: AgentError) -> None:
    agents, memory = Answering(), Memory()
    made, _ = actor(agents=agents)
    agents.error = error
    with pytest.raises(AgentError):
        await made.remove(MOUNT_UID, memory, REMOVE)
    assert memory.unanswered == {}


async def test_a_list_that_is_answered_ends_the_silence() -> None:
    memory = Memory()
    memory.unheard(NODE, now=0.0)
    memory.listed(NODE, (), asked=0.0)
    assert memory.unanswered == {}


async def test_what_is_released_without_its_agent_is_as_good_as_removed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = Memory()
    memory.answered([given.grant()], now=1.0)
    discharge = do.Discharge(
        place=PLACE,
        shadow_uids=(),
        proof=do.Proof(do.By.ADMINISTRATOR, "rack 7\nburnt down"),
        devices=("a/b one",),
    )
    made, _ = actor()
    made.discharge(MOUNT_UID, memory, discharge)
    assert memory.released == {SHADOW_UID}
    assert [grant.phase for grant in memory.grants()] == [GrantPhase.REMOVED]
    assert memory.is_empty()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "node=node1 devices='a/b one' proof=administrator" in record.getMessage()


def mount_json(**meta: Any) -> dict[str, Any]:
    metadata = {"name": "gpu", "namespace": "team-a", "uid": MOUNT_UID, "resourceVersion": "7"}
    return {
        "kind": "DeviceMount",
        "metadata": {**metadata, "finalizers": ["devicemount.io/finalizer"], **meta},
        "spec": {
            "target": {"podName": "notebook-0"},
            "resources": {"limits": {given.RESOURCE: 1}},
        },
    }


async def test_a_mount_goes_with_its_target_as_it_was_decided_on() -> None:
    api, mounts = Api(mount_json()), Mounts()
    mounts.put(mount_json(), now=0.0)
    known = mounts.get(MOUNT_UID)
    assert known is not None
    made, woken = actor(cluster=api, mounts=mounts)
    await made.delete_mount(known)
    assert api.deleted == [(MOUNT_UID, "7")]
    assert woken == [MOUNT_UID], "the deletion is carried out like any other"


async def test_a_mount_that_was_changed_meanwhile_is_looked_at_again() -> None:
    api, mounts = Api(mount_json(resourceVersion="8", generation=2)), Mounts()
    mounts.put(mount_json(), now=0.0)
    known = mounts.get(MOUNT_UID)
    assert known is not None
    made, woken = actor(cluster=api, mounts=mounts)
    await made.delete_mount(known)
    assert api.deleted == []
    assert woken == [MOUNT_UID]


async def test_another_object_of_that_name_is_left_alone() -> None:
    api, mounts = Api(mount_json(uid="another")), Mounts()
    mounts.put(mount_json(), now=0.0)
    known = mounts.get(MOUNT_UID)
    assert known is not None
    made, _ = actor(cluster=api, mounts=mounts)
    with pytest.raises(errors.NotFound):
        await made.delete_mount(known)
    assert api.deleted == []
