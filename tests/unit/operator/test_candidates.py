# SPDX-License-Identifier: Apache-2.0
"""Which namespaces are watched, and whom a pod that changes wakes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from devicemount_operator.api.v1alpha1 import LabelSelector
from devicemount_operator.candidates import MAX_LABELS, Candidates, living_pods
from devicemount_operator.packing import Packed
from devicemount_operator.reflector import Changed, Content, Listed, Reflector, Selection

WEB = LabelSelector.model_validate({"matchLabels": {"app": "web"}})
DB = LabelSelector.model_validate({"matchLabels": {"app": "db"}})
DEADLINE_S = 5.0
MIRROR = "0123456789abcdef0123456789abcdef"


class Stream(Reflector):
    """Tells what it is fed, for as long as it is followed."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.is_followed = False
        self._events: asyncio.Queue[Listed | Changed] = asyncio.Queue()

    async def events(self) -> AsyncGenerator[Listed | Changed, None]:
        self.is_followed = True
        try:
            while True:
                yield await self._events.get()
                self._events.task_done()
        finally:
            self.is_followed = False

    async def tell(self, event: Listed | Changed) -> None:
        self._events.put_nowait(event)
        async with asyncio.timeout(DEADLINE_S):
            await self._events.join()


class World:
    def __init__(self) -> None:
        self.woken: list[str] = []
        self.opened: list[Stream] = []
        self.candidates = Candidates(reflector=self._open, wake=self.woken.append)

    def _open(self, selection: Selection) -> Stream:
        self.opened.append(Stream(selection))
        return self.opened[-1]

    def use(self, mount_uid: str, selector: LabelSelector = WEB, namespace: str = "a") -> None:
        self.candidates.use(namespace, mount_uid=mount_uid, selector=selector)

    def watched(self) -> set[str]:
        """Return the namespaces of which streams are followed."""
        return {s.selection.path.split("/")[4] for s in self.opened if s.is_followed}

    def names(self, namespace: str = "a") -> list[str] | None:
        pods = self.candidates.of(namespace)
        return None if pods is None else [pod.name for pod in pods]

    async def told(self, event: Listed | Changed) -> list[str]:
        """Return whom an event of the newest stream wakes."""
        self.woken.clear()
        await self.opened[-1].tell(event)
        return sorted(self.woken)


@asynccontextmanager
async def running() -> AsyncIterator[World]:
    world = World()
    task = asyncio.create_task(world.candidates.run())
    try:
        yield world
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def turned() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


def pod(name: str, app: str = "web", **meta: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-of-{name}",
            "resourceVersion": "1",
            "labels": {"app": app},
            "creationTimestamp": "2026-11-26T07:00:00Z",
            **meta,
        }
    }


def listed(*pods: dict[str, Any]) -> Listed:
    kept = living_pods("a").kept
    return Listed(tuple(Packed.of(kept(pod)) for pod in pods), "1")


def changed(raw: dict[str, Any]) -> Changed:
    return Changed(raw, deleted=False)


async def test_a_namespace_is_watched_while_a_selector_is_in_use_there() -> None:
    async with running() as world:
        assert world.opened == []
        world.use("x")
        world.use("y")
        world.use("z", namespace="b")
        await turned()
        assert world.watched() == {"a", "b"}
        of_a = next(s for s in world.opened if s.selection.path == "/api/v1/namespaces/a/pods")
        assert of_a.selection.content is Content.METADATA
        assert of_a.selection.label_selector == "!devicemount.io/shadow"
        assert of_a.selection.field_selector == "status.phase!=Succeeded,status.phase!=Failed"
        world.candidates.leave("x")
        await turned()
        assert of_a.is_followed
        world.candidates.leave("y")
        world.candidates.leave("nobody")
        await turned()
        assert not of_a.is_followed
        assert world.watched() == {"b"}


async def test_nothing_is_known_before_everything_is_listed() -> None:
    async with running() as world:
        world.use("x")
        world.use("y", DB)
        await turned()
        assert world.names() is None
        assert await world.told(listed(pod("p"))) == ["x", "y"]
        assert world.names() == ["p"]
        world.candidates.leave("x")
        world.candidates.leave("y")
        await turned()
        world.use("x")
        await turned()
        assert world.names() is None, "what was known may have changed since"


async def test_a_change_wakes_whom_it_concerns() -> None:
    async with running() as world:
        world.use("web")
        world.use("db", DB)
        await turned()
        await world.told(listed(pod("p"), pod("q", "other")))
        assert await world.told(changed(pod("p"))) == ["web"], "a container may run by now"
        assert await world.told(changed(pod("p", "db"))) == ["db", "web"]
        assert await world.told(changed(pod("q", "another"))) == []
        assert await world.told(Changed(pod("p", "db"), deleted=True)) == ["db"]
        assert world.names() == ["q"]


async def test_a_pod_is_known_by_what_its_metadata_says() -> None:
    async with running() as world:
        world.use("x")
        await turned()
        mirror = {"kubernetes.io/config.mirror": MIRROR}
        deleted = "2026-11-26T08:00:00Z"
        await world.told(
            listed(pod("s", annotations=mirror), pod("d", deletionTimestamp=deleted, labels=None))
        )
        static, dying = world.candidates.of("a") or ()
        assert static.uid == MIRROR
        assert (static.deleting, dying.deleting) == (False, True)
        assert dying.labels == {}


async def test_of_a_pod_no_more_is_kept_than_is_read() -> None:
    kept = living_pods("a").kept
    note = {"kubernetes.io/config.mirror": MIRROR, "more": "x" * 200_000}
    bare = kept(pod("p", annotations=note, managedFields=[{"manager": "m"}]))["metadata"]
    assert bare == {**pod("p")["metadata"], "annotations": {"kubernetes.io/config.mirror": MIRROR}}


async def test_a_pod_with_more_labels_than_anybody_has_is_no_target() -> None:
    many = {"app": "web", **{f"l{n}": "x" * 63 for n in range(MAX_LABELS // 64)}}
    async with running() as world:
        world.use("x")
        await turned()
        assert await world.told(listed(pod("a"), pod("b", labels=many))) == ["x"]
        assert world.names() == ["a"]
        assert await world.told(changed(pod("a", labels=many))) == ["x"]
        assert world.names() == []
        assert await world.told(changed(pod("a"))) == ["x"]
        assert world.names() == ["a"]
