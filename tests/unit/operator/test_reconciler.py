# SPDX-License-Identifier: Apache-2.0
"""Passes over one mount: what makes another pass follow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from devicemount_operator import errors
from devicemount_operator.act import Actor
from devicemount_operator.agents import Agents, Deadlines
from devicemount_operator.caches import Mounts, Shadows
from devicemount_operator.candidates import Candidates
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide.observation import FINALIZER
from devicemount_operator.election import Epoch
from devicemount_operator.facts import NodeFacts
from devicemount_operator.memory import Memories
from devicemount_operator.observe import Observer
from devicemount_operator.orphans import Orphans
from devicemount_operator.reconciler import Reconciler
from devicemount_operator.recorder import Recorder
from devicemount_operator.settings import Settings
from devicemount_operator.turns import Turns
from devicemount_operator.witness import Witness
from unit.operator import given

UID = "11111111-0000-4000-8000-000000000000"
SETTINGS = Settings(
    namespace="system", identity="we", hold_image="hold:1", tls_directory=Path("/nowhere")
)
EPOCH = Epoch(lease_created_ns=1, lease_uid="lease", transitions=1)


def mount(version: int, **meta: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "gpu",
            "namespace": "team-a",
            "uid": UID,
            "generation": 1,
            "resourceVersion": str(version),
            "finalizers": [FINALIZER],
            **meta,
        },
        "spec": {"target": {"podName": "gone"}, "resources": {"limits": {"x.io/y": 1}}},
    }


class NoPods(Cluster):
    """An API server without any pod, which answers a status write as the test says."""

    def __init__(self, answer: dict[str, Any] | errors.DeviceMountError) -> None:
        self._answer = answer

    async def get_pod(self, key: ObjectKey) -> dict[str, Any]:
        raise errors.NotFound(f"no pod {key}", status=404)

    async def patch_status(
        self, key: ObjectKey, *, uid: str, status: Mapping[str, object]
    ) -> dict[str, Any]:
        if isinstance(self._answer, errors.DeviceMountError):
            raise self._answer
        return self._answer

    async def create_event(self, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        return body


async def pauses_after(answer: dict[str, Any] | errors.DeviceMountError) -> list[float]:
    """Do one pass over a mount without a target; return after how long others are to follow."""
    pauses: list[float] = []
    cluster, mounts, shadows, memories = NoPods(answer), Mounts(), Shadows(), Memories()
    deadlines = Deadlines(apply_s=1, remove_s=1, list_s=1)
    agents = Agents(epoch=EPOCH, port=1, deadlines=deadlines)
    actor = Actor(
        cluster=cluster,
        agents=agents,
        mounts=mounts,
        shadows=shadows,
        settings=SETTINGS,
        wake=lambda _: None,
    )
    recorder = Recorder(cluster, identity="we")
    turns = Turns(shadows=shadows, memories=memories, wake=lambda _: None)
    mounts.put(mount(1), now=0.0)
    await Reconciler(
        cluster=cluster,
        mounts=mounts,
        shadows=shadows,
        memories=memories,
        observer=Observer(
            cluster=cluster,
            agents=agents,
            facts=NodeFacts(agents),
            turns=turns,
            shadows=shadows,
            candidates=Candidates(reflector=given.no_watch, wake=lambda _: None),
            witness=Witness(reflector=given.no_watch, wake=lambda _: None),
            settings=SETTINGS,
        ),
        actor=actor,
        orphans=Orphans(
            cluster=cluster,
            actor=actor,
            shadows=shadows,
            recorder=recorder,
            hold_image="hold:1",
            found=lambda _: None,
        ),
        recorder=recorder,
        turns=turns,
        again=lambda _, delay_s: pauses.append(delay_s),
    ).reconcile(UID)
    return pauses


@pytest.mark.parametrize(
    ("answer", "pauses"),
    [
        (mount(2), [2.0]),
        (mount(3, deletionTimestamp="2026-11-26T07:00:00Z"), [0.0, 2.0]),
        (errors.LeaseLost("late"), [1.0]),
        (errors.Unreachable("down"), [1.0]),
    ],
    ids=[
        "as written",
        "deleted meanwhile: the watch tells nothing newer",
        "the Lease is late",
        "not written",
    ],
)
async def test_another_pass_follows(
    answer: dict[str, Any] | errors.DeviceMountError, pauses: list[float]
) -> None:
    assert await pauses_after(answer) == pauses
