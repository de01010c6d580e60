# SPDX-License-Identifier: Apache-2.0
"""What a pass reads again before it believes the worst."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from devicemount_operator import errors, shadow_pod
from devicemount_operator.agents import AgentError, Agents
from devicemount_operator.caches import KnownMount, Shadows
from devicemount_operator.candidates import Candidates
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide import chain, reservation
from devicemount_operator.decide.observation import (
    Grant,
    GrantPhase,
    NodeName,
    Observation,
    PodUID,
)
from devicemount_operator.decide.split import NAMED, Part, PartKey, Split
from devicemount_operator.facts import NodeFacts
from devicemount_operator.memory import Memories, Memory
from devicemount_operator.messages import MountGrants
from devicemount_operator.observe import Observer
from devicemount_operator.reasons import Reason
from devicemount_operator.reflector import Reflector, Selection
from devicemount_operator.settings import Settings
from devicemount_operator.transport import JsonObject
from devicemount_operator.turns import Turns
from devicemount_operator.witness import Case, Witness
from unit.operator import given

IMAGE = "localhost/hold:1"


def pod(version: int, **changes: Any) -> JsonObject:
    """Return the shadow pod that the kubelet has taken in, and whose process does not run yet."""
    built = shadow_pod.build(
        given.mount(), target=given.target(), ordinal=0, resources=given.COUNTS, image=IMAGE
    )
    meta = {**built["metadata"], "uid": given.SHADOW_UID, "resourceVersion": str(version)}
    return {**built, "metadata": meta, "spec": {**built["spec"], "nodeName": given.NODE}, **changes}


RUNS = {"containerStatuses": [{"name": "hold", "state": {"running": {}}}], "phase": "Running"}
ANOTHER = pod(3, metadata={**pod(3)["metadata"], "uid": "another"})


class Api(Cluster):
    """Has the pod that it is given, and counts questions."""

    def __init__(self, has: JsonObject | None) -> None:
        self.has = has
        self.asked: list[ObjectKey] = []

    async def get_pod(self, key: ObjectKey) -> JsonObject:
        self.asked.append(key)
        if key.name != given.SHADOW_NAME or self.has is None:
            raise errors.NotFound("gone", status=404)
        return self.has


class Alone(Agents):
    """The only agent, which knows these grants of the mount."""

    def __init__(self, *grants: Grant) -> None:
        self._grants = grants
        self.asked = 0

    def nodes(self) -> frozenset[NodeName]:
        return frozenset({given.NODE})

    async def list(self, node: NodeName) -> tuple[MountGrants, ...]:
        self.asked += 1
        if not self._grants:
            raise AgentError(Reason.AGENT_UNAVAILABLE, "it does not answer")
        return (
            MountGrants(
                mount_uid=given.MOUNT_UID,
                place=given.PLACE,
                phase=GrantPhase.GRANTED,
                grants=self._grants,
            ),
        )


def observer_of(
    api: Api,
    shadows: Shadows,
    memories: Memories,
    agents: Agents,
    witness: Witness | None = None,
) -> Observer:
    return Observer(
        cluster=api,
        agents=agents,
        facts=NodeFacts(agents),
        turns=Turns(shadows=shadows, memories=memories, wake=lambda uid: None),
        shadows=shadows,
        candidates=Candidates(reflector=given.no_watch, wake=lambda _: None),
        witness=witness or Witness(reflector=given.no_watch, wake=lambda _: None),
        settings=Settings(
            namespace="system", identity="a", hold_image=IMAGE, tls_directory=Path("/nowhere")
        ),
    )


async def observed(api: Api) -> Observation:
    """Let a pass look at a mounted pod of which the watch last said that it starts."""
    shadows, memories = Shadows(), Memories()
    shadows.put(pod(1), now=0.0)
    mount = KnownMount({}, given.mount(), seen=0.0)
    observer = observer_of(api, shadows, memories, Alone())
    memory = memories.of(given.MOUNT_UID)
    part = Part(key=NAMED, pod_name="notebook-0")
    memory.part(NAMED, now=0.0).applying = frozenset({given.SHADOW_UID})
    return await observer.completed(observer.known(mount, memory, part), part, memory)


async def test_a_fence_that_runs_although_the_watch_does_not_say_so_is_believed() -> None:
    api = Api(pod(2, status=RUNS))
    seen = await observed(api)
    (shadow,) = seen.shadows
    assert shadow.hold_down_since is None
    assert reservation.unguarded(seen) is None
    assert [key.name for key in api.asked] == [given.SHADOW_NAME]


async def test_a_fence_that_does_not_run_is_given_up() -> None:
    seen = await observed(Api(pod(1)))
    assert reservation.unguarded(seen) is not None


@pytest.mark.parametrize(
    "has", [pytest.param(None, id="gone"), pytest.param(ANOTHER, id="another of that name")]
)
async def test_a_shadow_pod_that_went_unseen_is_known_to_be_gone(has: JsonObject | None) -> None:
    assert (await observed(Api(has))).shadows == ()


async def test_a_fence_that_has_still_time_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reservation, "HOLD_DOWN_S", float("inf"))
    api = Api(None)
    assert len((await observed(api)).shadows) == 1
    assert api.asked == []


# An operator that has just started, and an agent that it could not ask yet


class WithTarget(Api):
    """Has the target pod, which runs."""

    async def get_pod(self, key: ObjectKey) -> JsonObject:
        status = {"phase": "Running", "containerStatuses": [RUNNING]}
        meta = {"name": key.name, "namespace": key.namespace, "uid": given.TARGET_UID}
        spec = {"nodeName": given.NODE, "containers": [{"name": "notebook"}]}
        return {"metadata": meta, "spec": spec, "status": status}


RUNNING = {"name": "notebook", "state": {"running": {}}, "containerID": "containerd://c0ffee"}


async def started_anew(agents: Alone, *, wanted: int) -> Observation:
    """Look at a shadow pod of two devices, of which this process has not heard before."""
    shadows, memories, memory = Shadows(), Memories(), Memory()
    two = shadow_pod.build(
        given.mount(), target=given.target(), ordinal=0, resources={given.RESOURCE: 2}, image=IMAGE
    )
    meta = {**two["metadata"], "uid": given.SHADOW_UID, "resourceVersion": "1"}
    spec = {**two["spec"], "nodeName": given.NODE}
    shadows.put({**two, "metadata": meta, "spec": spec, "status": RUNS}, now=time.monotonic())
    mount = KnownMount({}, given.mount(limits={given.RESOURCE: wanted}), seen=0.0)
    observer = observer_of(WithTarget(None), shadows, memories, agents)
    part = Part(key=NAMED, pod_name="notebook-0")
    return await observer.completed(observer.known(mount, memory, part), part, memory)


async def test_what_no_agent_has_spoken_of_is_not_taken_for_idle_before_it_is_asked() -> None:
    agents = Alone(given.grant(devices=(given.device("vcs1"), given.device("vcs2"))))
    seen = await started_anew(agents, wanted=1)
    decision = chain.decide(seen)
    assert decision.report is not None
    assert (decision.report.reason, decision.actions) == (Reason.SHRINK_NOT_POSSIBLE, ())
    assert agents.asked == 1


async def test_an_agent_that_does_not_answer_keeps_what_may_be_in_use() -> None:
    with pytest.raises(AgentError):
        await started_anew(Alone(), wanted=1)


async def test_an_agent_is_not_asked_where_nothing_is_given_back() -> None:
    agents = Alone()
    await started_anew(agents, wanted=2)
    assert agents.asked == 0


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"namespace": "team-b"}, id="in another namespace"),
        pytest.param({"name": "somebodys"}, id="under another name"),
    ],
)
def test_a_pod_that_merely_has_the_label_makes_no_target_a_former_one(
    changes: dict[str, str],
) -> None:
    shadows, memories = Shadows(), Memories()
    shadows.put(pod(1), now=0.0)
    forged = pod(2)["metadata"]
    owners = [{**owner, "name": "bogus"} for owner in forged["ownerReferences"]]
    meta = {**forged, "uid": "forged", "ownerReferences": owners, **changes}
    shadows.put(pod(2, metadata=meta), now=0.0)
    observer = observer_of(Api(None), shadows, memories, Alone())
    mount = KnownMount({}, given.mount(), seen=0.0)
    found = observer.split(mount, memories.of(given.MOUNT_UID))
    assert found == Split(parts=(Part(key=NAMED, pod_name="notebook-0"),))


async def test_a_target_that_is_none_any_more_makes_room_for_another_that_is_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("devicemount_operator.witness.MAX_WATCHED", 1)
    opened: list[str] = []

    def reflector(selection: Selection) -> Reflector:
        opened.append(selection.field_selector)
        raise errors.Expired("ends at once", status=410)

    witness = Witness(reflector=reflector, wake=lambda _: None)
    memories = Memories()
    observer = observer_of(Api(None), Shadows(), memories, Alone(), witness)
    former, latter = (Case(given.MOUNT_UID, PartKey(uid)) for uid in ("former", "latter"))
    witness.watch(former, ObjectKey("team-a", "web-1"), uid=PodUID("former"))
    observer.split(KnownMount({}, given.mount(), seen=0.0), memories.of(given.MOUNT_UID))
    witness.watch(latter, ObjectKey("team-a", "web-2"), uid=PodUID("latter"))
    await asyncio.sleep(0)
    await witness.close()
    assert opened == ["metadata.name=web-2"]
