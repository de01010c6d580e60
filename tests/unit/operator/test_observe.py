# SPDX-License-Identifier: Apache-2.0
"""What a pass reads again before it believes the worst."""

from pathlib import Path
from typing import Any

import pytest

from devicemount_operator import errors, shadow_pod
from devicemount_operator.agents import Agents
from devicemount_operator.caches import KnownMount, Shadows
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide import reservation
from devicemount_operator.decide.observation import NodeName, Observation
from devicemount_operator.facts import NodeFacts
from devicemount_operator.memory import Memories
from devicemount_operator.observe import Observer
from devicemount_operator.settings import Settings
from devicemount_operator.transport import JsonObject
from devicemount_operator.turns import Turns
from unit.operator import given

IMAGE = "localhost/hold:1"


def pod(version: int, **changes: Any) -> JsonObject:
    """Return the shadow pod that the kubelet has taken in, and whose process does not run yet."""
    built = shadow_pod.build(given.mount(), target=given.target(), ordinal=0, image=IMAGE)
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
    def __init__(self) -> None:
        pass

    def nodes(self) -> frozenset[NodeName]:
        return frozenset({given.NODE})


async def observed(api: Api) -> Observation:
    """Let a pass look at a mounted pod of which the watch last said that it starts."""
    shadows, memories, agents = Shadows(), Memories(), Alone()
    shadows.put(pod(1), now=0.0)
    mount = KnownMount({}, given.mount(), seen=0.0)
    observer = Observer(
        cluster=api,
        agents=agents,
        facts=NodeFacts(agents),
        turns=Turns(shadows=shadows, memories=memories, wake=lambda uid: None),
        shadows=shadows,
        settings=Settings(
            namespace="system", identity="a", hold_image=IMAGE, tls_directory=Path("/nowhere")
        ),
    )
    memory = memories.of(given.MOUNT_UID)
    memory.applying = given.SHADOW_UID
    return await observer.completed(observer.known(mount, memory))


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
