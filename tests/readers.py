# SPDX-License-Identifier: Apache-2.0
"""The readers over a directory that stands for a node's root, and a runtime that says it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from devicemount_agent.allocation.answered import Answered
from devicemount_agent.allocation.ascend import Ascend
from devicemount_agent.allocation.bundle import Bundle
from devicemount_agent.allocation.cdi import Cdi
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.nvidia import Instances, NvidiaProc, nobody_knows
from devicemount_agent.allocation.resolver import Resolving
from devicemount_agent.allocation.said import Reader, Said, Subject
from devicemount_agent.allocation.sources import ReaderSources
from devicemount_agent.container.cri import ContainerFacts, SandboxFacts
from devicemount_agent.container.runtimes import UNKNOWN, RuntimeFacts
from devicemount_agent.model import ContainerID, PodUID
from devicemount_agent.profiles.store import Profiles
from devicemount_agent.requests import ShadowPod

SHADOW = ShadowPod(PodUID("5e0c7f1a-92d4-4b6e-8f3a-1d7b60c2e958"), "dm-aaaaaaaa-bbbbbbbb-0")
HOLD_ID = ContainerID("c0ffee")


@dataclass
class FakeRuntime:
    """One shadow pod that runs."""

    annotations: Mapping[str, str] = field(default_factory=dict)
    pid: int = 1
    mounts: frozenset[str] = frozenset()
    runtime: RuntimeFacts = UNKNOWN

    async def running(self, pod_uid: PodUID, name: str | None = None) -> ContainerID | None:
        return HOLD_ID

    async def container(self, container_id: ContainerID) -> ContainerFacts | None:
        return ContainerFacts(
            id=container_id,
            pod_uid=SHADOW.uid,
            namespace="team-a",
            pod_name=SHADOW.name,
            name="hold",
            is_running=True,
            pid=self.pid,
            mounts=self.mounts,
            runtime=self.runtime,
        )

    async def sandbox(self, pod_uid: PodUID) -> SandboxFacts | None:
        return SandboxFacts(
            "team-a", SHADOW.name, is_ready=True, labels={}, annotations=self.annotations
        )


@dataclass
class FakeLive:
    """A running shadow container that shows this."""

    shows: Said | None = None

    async def read(self, subject: Subject) -> Said | None:
        return self.shows


@cache
def shipped_profiles() -> Profiles:
    """Ours alone: reading them takes longer than a test."""
    return Profiles(Path("/nonexistent"))


def sources_on(
    root: Path,
    *,
    annotations: Mapping[str, str] | None = None,
    live: Reader | None = None,
    profiles: Profiles | None = None,
    runtime: FakeRuntime | None = None,
    instances: Instances = nobody_knows,
) -> ReaderSources:
    """All readers; the shadow container shows nothing unless it is said."""
    host = Host(root)
    runtime = runtime or FakeRuntime(annotations or {})
    resolving = Resolving(
        {"nvidiaProc": NvidiaProc(host, instances=instances), "ascend": Ascend(host)}
    )
    return ReaderSources(
        profiles=profiles or shipped_profiles(),
        readers={
            "checkpoint": Answered(host),
            "cdi": Cdi(host, (root / "etc/cdi", root / "var/run/cdi")),
            "resolver": resolving,
            "bundle": Bundle(host, runtime, (root / "run/containerd",)),
            "live": live or FakeLive(),
        },
        resolving=resolving,
        sandboxes=runtime,
    )
