# SPDX-License-Identifier: Apache-2.0
"""The agent killed at each of its points, in everything it does: whatever it was at, the next agent
brings it to its end, nobody keeps what nobody reserves, and a bystander notices nothing.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import grpc
import pytest

from devicemount_agent.graft import graft
from devicemount_agent.model import DeviceNumber
from devicemount_agent_api.failpoints import Failpoint
from devicemount_agent_api.v1 import agent_pb2 as pb
from devicemount_node_api import deviceplugin_pb2

from .conftest import DEADLINE_S, RESOURCE, Node, Shadow, Target
from .process import agent_process
from .test_damage import ON_V1, alive
from .test_drift import Wiper, hierarchy
from .test_edits import driver, mounted, names, there
from .test_mount import can_open, until

__all__ = ["driver", "hierarchy"]

BYSTANDER_UID = "99999999-bbbb-4bbb-8bbb-999999999999"


@dataclass
class Scene:
    """A target that gets, has or loses a device, and a bystander who has another one."""

    node: Node
    target: Target
    shadow: Shadow
    bystander: Target
    bystanders_fd: int
    before: frozenset[DeviceNumber]  # what the kernel had of the target by name

    async def apply(self) -> pb.MountState:
        return await self.node.apply(self.target, self.shadow)

    async def remove(self, policy: "pb.Policy.ValueType" = pb.WAIT) -> pb.MountState:
        return await self.node.remove(self.target, self.shadow, policy=policy)

    async def state(self) -> pb.MountState | None:
        states = {state.key.mount_uid: state for state in await self.node.states()}
        assert states[self.bystander.mount_uid].phase == pb.GRANTED
        return states.get(self.target.mount_uid)

    def is_undisturbed(self) -> bool:
        return can_open(self.bystander, "vcsa1") and not can_open(self.bystander, "vcs1")


Step = Callable[[Scene], Awaitable[None]]


async def answered(
    ask: Callable[[], Awaitable[pb.MountState | None]], phase: "pb.Phase.ValueType"
) -> pb.MountState:
    """Ask until that phase is told."""
    give_up = asyncio.get_running_loop().time() + DEADLINE_S
    while True:
        state = await ask()
        if state is not None and state.phase == phase:
            return state
        assert asyncio.get_running_loop().time() < give_up, f"phase {phase}, not {state}"
        await asyncio.sleep(0.02)


async def _called(call: Awaitable[pb.MountState]) -> None:
    """Ask; the agent ends before it answers."""
    with pytest.raises(grpc.aio.AioRpcError):
        await call


async def nothing(scene: Scene) -> None:
    """The scene begins without a grant."""


async def granted(scene: Scene) -> None:
    assert (await scene.apply()).phase == pb.GRANTED
    assert can_open(scene.target, "vcs1")


async def held(scene: Scene) -> None:
    """Granted, and a child of the target's first process has it open."""
    await granted(scene)
    inside = scene.target.box.inside
    fd = inside.open("/dev/vcs1")
    inside.tell("fork_child")
    inside.close(fd)


async def mount(scene: Scene) -> None:
    await _called(scene.apply())


async def unmount(scene: Scene) -> None:
    await _called(scene.remove())


async def terminate(scene: Scene) -> None:
    await _called(scene.remove(pb.TERMINATE))


async def repair(scene: Scene) -> None:
    """Somebody takes the access away; the agent notices by itself."""
    Wiper(scene.node, scene.target).wipe()


async def restart(scene: Scene) -> None:
    """The container ends and another one of the pod runs; the agent notices by itself."""
    scene.target = scene.node.restarted(scene.target)


async def lose(scene: Scene) -> None:
    """The shadow pod is gone and the device another pod's; the agent notices by itself."""
    scene.node.kubelet.forget(scene.shadow.pod)
    scene.node.runtime.sandboxes.remove(scene.shadow.pod)
    rival = scene.node.shadow(scene.target, 9).pod
    scene.node.kubelet.choose(rival, RESOURCE, {"vcs1": []}, container="competitor")


async def is_granted(scene: Scene) -> None:
    """The mount stands, verified in the container that runs now; once more changes nothing."""
    state = await answered(scene.state, pb.GRANTED)
    assert state.container_id == scene.target.box.id
    assert can_open(scene.target, "vcs1")
    assert (await scene.apply()).phase == pb.GRANTED


async def is_removed(scene: Scene) -> None:
    """The operator asks again until it is told that nothing is left; once more changes nothing."""
    for _ in range(2):
        await answered(scene.remove, pb.REMOVED)
    assert not can_open(scene.target, "vcs1")


async def is_terminated(scene: Scene) -> None:
    await answered(partial(scene.remove, pb.TERMINATE), pb.REMOVED)
    assert scene.target.box.inside.process.poll() is None, "the main process was not to be ended"
    assert not can_open(scene.target, "vcs1")


async def is_lost(scene: Scene) -> None:
    """Nobody has the device any more, and it is never granted by that shadow pod again."""
    await answered(scene.state, pb.LOST_PHASE)
    await until(lambda: not can_open(scene.target, "vcs1"), "access is gone")
    with pytest.raises(grpc.aio.AioRpcError):
        await scene.apply()
    await answered(partial(scene.remove, pb.LOST), pb.REMOVED)


@dataclass(frozen=True)
class Deed:
    """What the agent is killed in: how it begins, what happens, how it must end."""

    points: tuple[Failpoint, ...]
    before: Step
    deed: Step
    after: Step


_IN = (
    Failpoint.AGENT_AFTER_INTENT,
    Failpoint.AGENT_AFTER_MOUNTS,
    Failpoint.AGENT_AFTER_GRANT,
    Failpoint.AGENT_BEFORE_COMMIT,
)
_OUT = (Failpoint.AGENT_AFTER_REVOKE, Failpoint.AGENT_AFTER_CLEAR)
_REPAIR = (Failpoint.AGENT_BEFORE_REPAIR, Failpoint.AGENT_AFTER_REPAIR)

DEEDS = {
    "mount": Deed(_IN, nothing, mount, is_granted),
    "unmount": Deed(_OUT, granted, unmount, is_removed),
    "terminate": Deed(_OUT, held, terminate, is_terminated),
    "repair": Deed(_REPAIR, granted, repair, is_granted),
    "restart": Deed((Failpoint.AGENT_BEFORE_RESTART, *_IN[1:]), granted, restart, is_granted),
    "loss": Deed((Failpoint.AGENT_AFTER_LOST, Failpoint.AGENT_AFTER_CLEAR), held, lose, is_lost),
}
MATRIX = [(name, point) for name, deed in DEEDS.items() for point in deed.points]


async def begun(node: Node) -> Scene:
    """The bystander's grant, open all the time."""
    bystander, target = node.target("bystander-0"), node.target()
    bystander.mount_uid = BYSTANDER_UID
    of_bystander = alive(node, bystander, node.reserved(bystander, "vcsa1"))
    shadow = alive(node, target, node.reserved(target, "vcs1"))
    assert (await node.apply(bystander, of_bystander)).phase == pb.GRANTED
    fd = bystander.box.inside.open("/dev/vcsa1")
    return Scene(node, target, shadow, bystander, fd, before=rules(target))


async def is_gone(scene: Scene) -> None:
    """Whatever it was, it can be taken back, and nothing is left of it."""
    await answered(scene.remove, pb.REMOVED)
    assert await scene.state() is None
    assert not can_open(scene.target, "vcs1")
    assert not (scene.target.box.root / "dev/vcs1").exists()
    assert scene.is_undisturbed()
    assert rules(scene.target) == scene.before
    scene.bystander.box.inside.close(scene.bystanders_fd)


def rules(target: Target) -> frozenset[DeviceNumber]:
    """What the container may do by entries of its own, or by ours."""
    return graft.allowed(target.box)


@pytest.mark.parametrize(("name", "point"), MATRIX, ids=lambda it: getattr(it, "value", it))
async def test_killed_at_any_point_of_anything(node: Node, name: str, point: Failpoint) -> None:
    deed = DEEDS[name]
    async with agent_process(node, point) as running:
        made = await begun(node)
        await deed.before(made)
        running.arm()
        await deed.deed(made)
        await running.ended()
    assert made.is_undisturbed()
    async with node.agent():
        await deed.after(made)
        await is_gone(made)


def with_files(node: Node, target: Target, driver: Path) -> Shadow:
    """A shadow pod with a CDI device: its node, a directory, a file, a link, environment."""
    read_only = {"options": ["ro", "nosuid", "nodev", "bind"]}
    mounts = {"/opt/vendor/lib": driver / "lib", "/usr/bin/vendor-tool": driver / "tool"}
    link = ["hook", "create-symlinks", "--link", "vendor/lib/libone.so::/opt/libvendor.so"]
    edits = {
        "deviceNodes": [{"path": "/dev/vcs1"}],
        "mounts": [
            {"containerPath": inside, "hostPath": str(host)} | read_only
            for inside, host in mounts.items()
        ],
        "hooks": [{"hookName": "createContainer", "path": "/usr/bin/hook", "args": link}],
        "env": ["VENDOR_DEVICE=vcs1"],
    }
    devices = [{"name": "vcs1", "containerEdits": edits}]
    spec = {"cdiVersion": "0.6.0", "kind": RESOURCE, "devices": devices}
    directory = node.directory / "cdi"
    directory.mkdir()
    (directory / "vendor.json").write_text(json.dumps(spec))
    node.settings = replace(node.settings, cdi_directory=directory)
    shadow = node.shadow(target)
    name = deviceplugin_pb2.CDIDevice(name=f"{RESOURCE}=vcs1")
    answer = deviceplugin_pb2.ContainerAllocateResponse(cdi_devices=[name])
    node.kubelet.choose(shadow.pod, RESOURCE, {"vcs1": []}, answer=answer)
    return alive(node, target, shadow)


@ON_V1
@pytest.mark.parametrize("point", _OUT, ids=lambda point: point.value)
async def test_killed_while_it_takes_back_what_came_with_a_device(
    node: Node, driver: Path, point: Failpoint
) -> None:
    target = node.target()
    before = names(target)
    shadow = with_files(node, target, driver)
    async with agent_process(node, point) as running:
        assert (await node.apply(target, shadow)).phase == pb.GRANTED
        assert there(target, "/opt/libvendor.so").read_text() == "one"
        running.arm()
        await _called(node.remove(target))
        await running.ended()
    async with node.agent():
        await answered(partial(node.remove, target), pb.REMOVED)
        assert not can_open(target, "vcs1")
        assert mounted(target) == set()
        assert names(target) == before


def test_every_point_of_the_agent_is_in_the_matrix() -> None:
    points = {point for point in Failpoint if point.name.startswith("AGENT_")}
    assert points == {point for _, point in MATRIX}
