# SPDX-License-Identifier: Apache-2.0
"""The operator as a process: killed at every failpoint and started again, told to end, asked how it
is; two of them, of which one works."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from component.operator.control_plane import free_ports
from component.operator.probes import answer_of
from component.operator.processes import OperatorProcess, operator_process
from component.operator.scene import FINALIZER, LEASE, LOOP, Scene
from devicemount_agent_api.failpoints import EXIT_STATUS, Failpoint
from devicemount_operator.__main__ import run
from devicemount_operator.errors import LeaseLost


def holds(scene: Scene, identity: str) -> Callable[[], Awaitable[bool]]:
    async def is_so() -> bool:
        return await scene.lease_holder() == identity

    return is_so


# Killed at a failpoint


Step = Callable[[Scene], Awaitable[object]]


async def mount(scene: Scene) -> None:
    await scene.mount()


async def mounted(scene: Scene) -> None:
    await scene.mount()
    await scene.becomes("Mounted")


async def grow(scene: Scene) -> None:
    change = {"spec": {"resources": {"limits": {LOOP: 3}}}}
    await scene.call("PATCH", scene.mount_path("dm"), change)


async def move(scene: Scene) -> None:
    await scene.call("PATCH", scene.mount_path("dm"), {"spec": {"target": {"podName": "other"}}})


async def lose(scene: Scene) -> None:
    shadow = await scene.shadow()
    await scene.delete(scene.pod_path(shadow["metadata"]["name"]), grace_s=0)


async def unmount(scene: Scene) -> None:
    await scene.unmount()


async def is_mounted(scene: Scene) -> None:
    mount = await scene.becomes("Mounted")
    assert mount["metadata"]["finalizers"] == [FINALIZER]
    count = mount["spec"]["resources"]["limits"][LOOP]

    async def nothing_too_many() -> bool:
        shadows = await scene.shadows()
        held = sum(int(s["spec"]["containers"][0]["resources"]["limits"][LOOP]) for s in shadows)
        named = {s["metadata"]["uid"] for s in shadows}
        known = {p.uid for state in scene.agent.states.values() for p in state.shadow_pods}
        return held == count and named == known

    await scene.eventually(nothing_too_many)


async def is_gone(scene: Scene) -> None:
    await scene.gone(scene.mount_path("dm"))
    assert await scene.shadows() == []
    assert scene.agent.states == {}


@dataclass(frozen=True)
class Story:
    """What happens before the failpoint is armed, what meets it, and how it must end."""

    before: Step | None
    change: Step
    end: Step
    points: tuple[Failpoint, ...]


F = Failpoint
STORIES = {
    "mount": Story(
        None,
        mount,
        is_mounted,
        (
            F.OPERATOR_BEFORE_SHADOW_POD,
            F.OPERATOR_AFTER_SHADOW_POD,
            F.OPERATOR_BEFORE_APPLY,
            F.OPERATOR_AFTER_FINALIZER,
            F.OPERATOR_AFTER_GRANT,
            F.OPERATOR_AFTER_STATUS,
        ),
    ),
    "unmount": Story(
        mounted,
        unmount,
        is_gone,
        (
            F.OPERATOR_BEFORE_REVOKE,
            F.OPERATOR_AFTER_REVOKE,
            F.OPERATOR_AFTER_DELETE,
            F.OPERATOR_AFTER_FINALIZER,
        ),
    ),
    "edit of the count": Story(
        mounted,
        grow,
        is_mounted,
        (F.OPERATOR_BEFORE_SHADOW_POD, F.OPERATOR_AFTER_SHADOW_POD, F.OPERATOR_AFTER_GRANT),
    ),
    "edit of the target": Story(
        mounted,
        move,
        is_mounted,
        (F.OPERATOR_BEFORE_REVOKE, F.OPERATOR_AFTER_DELETE, F.OPERATOR_AFTER_SHADOW_POD),
    ),
    "loss": Story(
        mounted,
        lose,
        is_mounted,
        (F.OPERATOR_BEFORE_REVOKE, F.OPERATOR_AFTER_REVOKE, F.OPERATOR_AFTER_SHADOW_POD),
    ),
}


@pytest.mark.parametrize(
    ("story", "point"),
    [(name, point) for name, story in STORIES.items() for point in story.points],
    ids=lambda value: value.value if isinstance(value, Failpoint) else value,
)
async def test_killed_at_any_point_of_anything(
    scene: Scene, tmp_path: Path, story: str, point: Failpoint
) -> None:
    told = STORIES[story]
    await scene.running_pod()
    await scene.running_pod("other")
    if told.before is not None:
        async with scene.operator():
            await told.before(scene)
    async with operator_process(scene, tmp_path, failpoint=point) as child:
        await told.change(scene)
        assert await child.end() == EXIT_STATUS
    async with scene.operator():
        await told.end(scene)


async def test_killed_between_shadow_pod_and_finalizer_and_the_mount_deleted_it_ends_clean(
    scene: Scene, tmp_path: Path
) -> None:
    failpoint = Failpoint.OPERATOR_AFTER_SHADOW_POD
    await scene.running_pod()
    await scene.mount()
    async with operator_process(scene, tmp_path, failpoint=failpoint) as child:
        assert await child.end() == EXIT_STATUS
    left = await scene.shadow()
    await scene.unmount()
    await scene.gone(scene.mount_path("dm"))
    async with scene.operator():
        await scene.gone(scene.pod_path(left["metadata"]["name"]))


async def test_killed_while_the_agent_waits_for_the_kubelet_it_makes_no_second_pod(
    scene: Scene, tmp_path: Path
) -> None:
    scene.agent.gate.clear()
    await scene.running_pod()
    await scene.mount()

    async def is_asked() -> bool:
        return bool(scene.agent.applies)

    async with operator_process(scene, tmp_path) as child:
        await scene.eventually(is_asked)
        child.kill()
        assert await child.end() == -signal.SIGKILL
    before = await scene.shadow()
    scene.agent.gate.set()
    async with scene.operator():
        await scene.becomes("Mounted")
    assert [pod["metadata"]["uid"] for pod in await scene.shadows()] == [before["metadata"]["uid"]]


# Who works


async def test_a_standby_is_ready_to_take_over_and_does(scene: Scene) -> None:
    first, second = free_ports(2)

    async def leads(port: int) -> bool:
        return "\ndevicemount_leader 1\n" in (await answer_of(port, "/metrics")).text

    async def is_ready(port: int) -> bool:
        return (await answer_of(port, "/readyz")).status == 200

    async with AsyncExitStack() as both:
        stop_first = await both.enter_async_context(
            scene.operator(identity="first", health_port=first)
        )
        await scene.eventually(holds(scene, "first"))
        await both.enter_async_context(scene.operator(identity="second", health_port=second))
        await scene.eventually(lambda: is_ready(first))
        await scene.eventually(lambda: is_ready(second))
        assert (await answer_of(second, "/healthz")).status == 200
        stop_first.set()
        await scene.eventually(holds(scene, "second"))
        await scene.eventually(lambda: leads(second))
        await scene.eventually(lambda: is_ready(second))


async def test_told_to_end_it_hands_over_at_once(scene: Scene, tmp_path: Path) -> None:
    await scene.running_pod()
    async with (
        operator_process(scene, tmp_path, identity="first") as first,
        AsyncExitStack() as later,
    ):
        await scene.eventually(holds(scene, "first"))
        await mounted(scene)
        await later.enter_async_context(operator_process(scene, tmp_path, identity="second"))
        first.kill(signal.SIGTERM)
        assert await first.end() == 0
        await scene.mount("next")
        await scene.becomes("Mounted", "next", within_s=3)
        assert await scene.lease_holder() == "second"
        assert_in_order(scene)


async def test_operators_that_are_killed_in_turn_leave_nothing_undone(
    scene: Scene, tmp_path: Path
) -> None:
    await scene.running_pod()
    lease = scene.with_lease(duration_s=1.0, renew_deadline_s=0.7, retry_s=0.2)
    times = {
        name: getattr(lease, name)
        for name in ("lease_duration_s", "lease_renew_deadline_s", "lease_retry_s")
    }
    async with AsyncExitStack() as all_of_them:

        async def start(identity: str) -> OperatorProcess:
            started = operator_process(scene, tmp_path, identity=identity, **times)
            return await all_of_them.enter_async_context(started)

        alive = {name: await start(name) for name in ("a-0", "b-0")}
        for turn in range(1, 4):
            await scene.eventually(is_held(scene, *alive))
            leader = await scene.lease_holder() or ""
            await scene.mount(f"dm{turn}")
            if turn > 1:
                await scene.unmount(f"dm{turn - 1}")
            alive.pop(leader).kill()
            name = f"{leader[0]}-{turn}"
            alive[name] = await start(name)
            await scene.becomes("Mounted", f"dm{turn}")
        await scene.gone(scene.mount_path("dm2"))
        await scene.unmount("dm3")
        await scene.gone(scene.mount_path("dm3"))
    assert await scene.shadows() == []
    assert scene.agent.states == {}
    assert_in_order(scene)


async def test_a_lease_that_is_deleted_is_made_anew_with_a_higher_epoch(
    scene: Scene, tmp_path: Path
) -> None:
    await scene.running_pod()
    async with operator_process(scene, tmp_path) as child:
        await mounted(scene)
        await scene.delete(LEASE)
        assert await child.end() == 1
    async with scene.operator(identity="next"):
        await scene.mount("next")
        await scene.becomes("Mounted", "next")
        await scene.unmount("next")
        await scene.gone(scene.mount_path("next"))
    assert_in_order(scene)


async def test_one_that_loses_the_lease_ends(scene: Scene) -> None:
    task = asyncio.create_task(run(scene.settings, stop=asyncio.Event()))
    await scene.eventually(scene.lease_holder)
    await scene.take_lease("another")
    with pytest.raises(ExceptionGroup) as ended:
        await asyncio.wait_for(task, 10)
    assert ended.group_contains(LeaseLost)
    await scene.take_lease("")


def is_held(scene: Scene, *by: str) -> Callable[[], Awaitable[bool]]:
    async def is_so() -> bool:
        return await scene.lease_holder() in by

    return is_so


def assert_in_order(scene: Scene) -> None:
    """No request of a former leader came after one of its successor."""
    requests: list[Any] = [*scene.agent.applies, *scene.agent.removes]
    for kind in (scene.agent.applies, scene.agent.removes):
        epochs = [(r.epoch.lease_created_ns, r.epoch.transitions) for r in kind]
        assert epochs == sorted(epochs)
    assert len({(r.epoch.lease_created_ns, r.epoch.transitions) for r in requests}) > 1
