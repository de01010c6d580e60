# SPDX-License-Identifier: Apache-2.0
"""Two mounts in one container at once: while the one is looked at, the other one comes or goes."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import grpc
import pytest

from devicemount_agent import grafts
from devicemount_agent.graft import edits
from devicemount_agent.graft.places import Places
from devicemount_agent.kernel.files import FileFacts, facts_of
from devicemount_agent.model import Bound
from devicemount_agent.planning import Planned
from devicemount_agent_api.v1 import agent_pb2 as pb

from .conftest import DEADLINE_S, Node, Shadow, Target
from .test_edits import OTHER_MOUNT_UID, READY, driver, mounted, names, reserved, there
from .test_mount import refusal, until

__all__ = ["driver"]  # a fixture


def plain(node: Node, target: Target, device: str, _: Path) -> Shadow:
    """A shadow pod whose device comes alone."""
    return node.reserved(target, device)


@dataclass(frozen=True)
class Shared:
    """What two mounts have in one container, and shadow pods that bring it."""

    point: str
    reserved: Callable[[Node, Target, str, Path], Shadow]


@pytest.fixture(
    params=[
        Shared("/opt/vendor/lib", reserved),
        Shared("/run/devicemount", reserved),
        Shared("/run/devicemount", plain),
    ],
    ids=["a driver", "environment", "a ready file"],
)
def shared(request: pytest.FixtureRequest) -> Shared:
    made: Shared = request.param
    return made


@dataclass
class Pause:
    """Where a thread stops, and what lets it go on."""

    reached: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def once(self) -> None:
        """Stop the first who comes by."""
        if not self.reached.is_set():
            self.reached.set()
            assert self.over.wait(DEADLINE_S)


@pytest.fixture
def pause() -> Iterator[Pause]:
    made = Pause()
    yield made
    made.over.set()


def once_over_a_mount(
    pause: Pause, point: str
) -> Callable[[Places, int, int, PurePosixPath], None]:
    """Stop who has just stepped over the mount, before it is looked up."""
    check = Places._check_stepped

    def checked(places: Places, fd: int, above: int, path: PurePosixPath) -> None:
        if str(path) == point and facts_of(fd).mount_id != above:
            pause.once()
        check(places, fd, above, path)

    return checked


def once_nothing_stands(pause: Pause, point: str) -> Callable[[Places, Bound, FileFacts], None]:
    """Stop who has found nothing of ours there, before what stands there is looked at."""
    check = edits.check_may_cover

    def checked(places: Places, bound: Bound, source: FileFacts) -> None:
        if bound.path == point:
            pause.once()
        check(places, bound, source)

    return checked


async def test_what_another_mount_takes_away_meanwhile_is_in_nobodys_way(
    node: Node, driver: Path, pause: Pause, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = node.target()
    other = Target(target.pod, target.box, OTHER_MOUNT_UID)
    before = names(target)
    async with node.agent():
        await node.apply(other, shared.reserved(node, other, "vcsa1", driver))
        stepped = once_over_a_mount(pause, shared.point)
        monkeypatch.setattr(Places, "_check_stepped", stepped)
        coming = asyncio.create_task(
            node.apply(target, shared.reserved(node, target, "vcs1", driver))
        )
        await until(pause.reached.is_set, "it looks at the container")
        assert (await node.remove(other)).phase == pb.REMOVED
        pause.over.set()

        assert (await coming).phase == pb.GRANTED
        assert there(target, READY).exists()
        assert (await node.remove(target)).phase == pb.REMOVED
        assert mounted(target) == set()
        assert names(target) == before


async def test_what_another_mount_brings_meanwhile_is_in_nobodys_way(
    node: Node, driver: Path, pause: Pause, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = node.target()
    other = Target(target.pod, target.box, OTHER_MOUNT_UID)
    before = names(target)
    async with node.agent():
        looked = once_nothing_stands(pause, shared.point)
        monkeypatch.setattr(edits, "check_may_cover", looked)
        coming = asyncio.create_task(
            node.apply(target, shared.reserved(node, target, "vcs1", driver))
        )
        await until(pause.reached.is_set, "it looks at the container")
        request = node.apply_request(other, shared.reserved(node, other, "vcsa1", driver))
        request.mount_name = "second"
        assert (await node.stub.Apply(request, timeout=DEADLINE_S)).phase == pb.GRANTED
        pause.over.set()

        assert (await coming).phase == pb.GRANTED
        assert there(target, READY).exists()
        for one in (other, target):
            assert (await node.remove(one)).phase == pb.REMOVED
        assert mounted(target) == set()
        assert names(target) == before


async def test_what_is_the_containers_own_is_refused_at_the_second_look(
    node: Node, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the container changes it."""
    target = node.target()
    looks = 0
    survey = grafts.survey

    def surveyed(*arguments: object, **named: object) -> Planned:
        nonlocal looks
        looks += 1
        return survey(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(grafts, "survey", surveyed)
    there(target, "/opt/vendor").mkdir(parents=True)
    there(target, "/opt/vendor/lib").touch()
    async with node.agent():
        applying = node.apply(target, reserved(node, target, "vcs1", driver))
        assert await refusal(applying) == ("PathConflict", grpc.StatusCode.FAILED_PRECONDITION)
    assert looks == 2
