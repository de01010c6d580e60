# SPDX-License-Identifier: Apache-2.0
"""On cgroup v2 a grant that nothing reserves and no record names is ours by its program: revoked
when a damaged journal is rebuilt, and the journal stays refused while somebody has it open.
"""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from devicemount_agent import rebuild
from devicemount_agent.container.cri import ContainerFacts, SandboxFacts
from devicemount_agent.graft import graft
from devicemount_agent.journal import Journal
from devicemount_agent.ledger import Ledger, Removed
from devicemount_agent.model import Access, ContainerID, DeviceNode, DeviceNumber, PodUID

from .containers import Box, Lab

BOOT = "this-boot"
TUN = DeviceNumber("c", 10, 200)


class Runtime:
    """One running container, no sandbox of a shadow pod."""

    def __init__(self, box: Box) -> None:
        self._box = box

    async def every_running(self) -> tuple[ContainerID, ...]:
        return (self._box.id,)

    async def all_sandboxes(self) -> Mapping[PodUID, SandboxFacts]:
        return {}

    async def container(self, container_id: ContainerID) -> ContainerFacts:
        return ContainerFacts(
            id=container_id,
            pod_uid=self._box.pod_uid,
            namespace="team-a",
            pod_name="notebook-0",
            name="notebook",
            is_running=True,
            pid=self._box.init_pid,
        )


class Grafts:
    """What the rebuild asks of grafts.py."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def ledger(self) -> Ledger:
        return self._journal.ledger

    def lock(self, _: PodUID) -> asyncio.Lock:
        return asyncio.Lock()


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Journal]:
    former = Journal(tmp_path / "journal", boot_id=BOOT)
    former.append(Removed(PodUID("shadow-a")))
    former.close()
    (tmp_path / "journal/journal").write_bytes(b"")
    journal = Journal(tmp_path / "journal", boot_id=BOOT)
    yield journal
    journal.close()


@pytest.fixture
def box(v2: Lab, monkeypatch: pytest.MonkeyPatch) -> Box:
    """The node's only container."""
    made = v2.container()

    async def find(*_: object, **__: object) -> Box:
        return made

    monkeypatch.setattr(Box, "close", lambda _: None, raising=False)
    monkeypatch.setattr(rebuild, "find", find)
    return made


@pytest.fixture
def once(box: Box, v2: Lab, damaged: Journal, hold: Path) -> rebuild.Rebuild:
    return rebuild.Rebuild(
        journal=damaged,
        grafts=cast(Any, Grafts(damaged)),
        runtime=cast(Any, Runtime(box)),
        checkpoint=cast(Any, None),
        allocation=cast(Any, None),
        hold=hold,
        cgroup_root=v2.root,
    )


async def test_what_only_our_program_allows_is_revoked(
    box: Box, once: rebuild.Rebuild, damaged: Journal, vcsa: DeviceNode
) -> None:
    graft.place(box, [vcsa])
    graft.permit(box, {vcsa.number: vcsa.access}, earlier={})
    fd = box.inside.open("/dev/vcsa")

    await once.run()
    assert not box.inside.can_open("/dev/vcsa")
    assert "has c 7:128 open, which nothing reserves" in once.amiss
    assert damaged.damage

    box.inside.close(fd)
    await once.run()
    assert once.amiss == ""
    assert damaged.damage == ""
    assert graft.allowed(box) == frozenset()


async def test_so_is_what_runtimes_allow_by_themselves(
    box: Box, once: rebuild.Rebuild, damaged: Journal
) -> None:
    graft.permit(box, {TUN: Access.READ | Access.WRITE}, earlier={})
    await once.run()
    assert damaged.damage == ""
    assert graft.allowed(box) == frozenset()
