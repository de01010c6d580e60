# SPDX-License-Identifier: Apache-2.0
"""What enters the container besides device nodes, by a whole agent: there with the grant, gone with
it, shared between grants, and after a crash at any step mounted or clean.
"""

import asyncio
from pathlib import Path

import grpc
import pytest

from devicemount_agent.graft.mountinfo import mounts_of
from devicemount_agent.model import PodUID
from devicemount_agent_api.failpoints import Failpoint
from devicemount_agent_api.v1 import agent_pb2 as pb
from devicemount_node_api import deviceplugin_pb2
from node.agent.containers import Actor

from .conftest import DEADLINE_S, RESOURCE, Node, Shadow, Target
from .test_mount import can_open, until
from .test_recovery import killed_at

OTHER_MOUNT_UID = "22222222-bbbb-4bbb-8bbb-222222222222"
ENV = "/run/devicemount/notebook-gpu.env"
READY = "/run/devicemount/notebook-gpu.ready"
A, U = "vcsa1", "vcsu1"
POINTS = [
    Failpoint.AGENT_AFTER_INTENT,
    Failpoint.AGENT_AFTER_MOUNTS,
    Failpoint.AGENT_AFTER_GRANT,
    Failpoint.AGENT_BEFORE_COMMIT,
]


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """What a vendor has on the node."""
    made = tmp_path / "driver"
    (made / "lib").mkdir(parents=True)
    (made / "lib/libone.so").write_text("one")
    (made / "tool").write_text("tool")
    return made


def reserved(node: Node, target: Target, device: str, driver: Path, *, ordinal: int = 0) -> Shadow:
    """A shadow pod whose device comes with a directory, a file and environment."""
    shadow = node.shadow(target, ordinal)
    mounts = {"/opt/vendor/lib": driver / "lib", "/usr/bin/vendor-tool": driver / "tool"}
    answer = deviceplugin_pb2.ContainerAllocateResponse(
        devices=[
            deviceplugin_pb2.DeviceSpec(
                host_path=f"/dev/{device}", container_path=f"/dev/{device}", permissions="rw"
            )
        ],
        mounts=[
            deviceplugin_pb2.Mount(container_path=inside, host_path=str(host), read_only=True)
            for inside, host in mounts.items()
        ],
        envs={"VENDOR_DEVICE": device, "VENDOR_OPTIONS": "two words"},
    )
    node.kubelet.choose(shadow.pod, RESOURCE, {device: []}, answer=answer)
    return shadow


def mounted(target: Target) -> set[str]:
    return {str(m.point) for m in mounts_of(Path(f"/proc/{target.box.init_pid}"))} - {"/", "/dev"}


def names(target: Target) -> set[str]:
    root = target.box.root
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def there(target: Target, path: str) -> Path:
    return target.box.root / path.lstrip("/")


async def test_all_comes_with_the_device_and_goes_with_it(node: Node, driver: Path) -> None:
    target = node.target()
    shadow = reserved(node, target, "vcs1", driver)
    before = names(target)
    async with node.agent():
        state = await node.apply(target, shadow)

        assert state.phase == pb.GRANTED
        (device,) = state.shadow_pods[0].devices
        assert set(device.mounts) == {"/opt/vendor/lib", "/usr/bin/vendor-tool"}
        assert device.env_file == ENV
        assert there(target, "/opt/vendor/lib/libone.so").read_text() == "one"
        assert there(target, "/usr/bin/vendor-tool").read_text() == "tool"
        assert there(target, ENV).read_text() == (
            "VENDOR_DEVICE=vcs1\nVENDOR_OPTIONS='two words'\n"
        )
        assert there(target, READY).exists()
        assert mounted(target) == {"/opt/vendor/lib", "/usr/bin/vendor-tool", "/run/devicemount"}

        assert (await node.remove(target)).phase == pb.REMOVED

        assert mounted(target) == set()
        assert names(target) == before
        assert list(node.settings.files_directory.iterdir()) == []


async def test_while_a_process_holds_the_device_all_stays(node: Node, driver: Path) -> None:
    target = node.target()
    shadow = reserved(node, target, "vcs1", driver)
    async with node.agent():
        await node.apply(target, shadow)
        library = target.box.inside.open("/opt/vendor/lib/libone.so")
        fd = target.box.inside.open("/dev/vcs1")
        assert (await node.remove(target)).phase == pb.BUSY
        assert there(target, READY).exists()
        assert "/opt/vendor/lib" in mounted(target)
        target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED  # an open library does not keep it
        target.box.inside.close(library)


async def test_what_two_mounts_bring_stays_until_the_last_goes(node: Node, driver: Path) -> None:
    target = node.target()
    other = Target(target.pod, target.box, OTHER_MOUNT_UID)
    before = names(target)
    async with node.agent():
        await node.apply(target, reserved(node, target, "vcs1", driver))
        request = node.apply_request(other, reserved(node, other, "vcsa1", driver))
        request.mount_name = "second"
        await node.stub.Apply(request, timeout=DEADLINE_S)
        assert there(target, "/run/devicemount/second.env").exists()

        assert (await node.remove(target)).phase == pb.REMOVED

        assert not there(target, ENV).exists()
        assert not there(target, READY).exists()
        assert there(target, "/run/devicemount/second.ready").exists()
        assert there(target, "/opt/vendor/lib/libone.so").read_text() == "one"

        assert (await node.remove(other)).phase == pb.REMOVED
        assert mounted(target) == set()
        assert names(target) == before


async def test_a_second_device_of_a_mount_adds_its_environment(node: Node, driver: Path) -> None:
    target = node.target()
    first = reserved(node, target, "vcs1", driver)
    async with node.agent():
        await node.apply(target, first)
        await node.apply(target, first, reserved(node, target, "vcsa1", driver, ordinal=1))
        lines = there(target, ENV).read_text().splitlines()
        assert {"VENDOR_DEVICE=vcs1", "VENDOR_DEVICE=vcsa1"} <= set(lines)
        await node.remove(target, first)
        assert "VENDOR_DEVICE=vcs1" not in there(target, ENV).read_text().splitlines()
        assert there(target, READY).exists()


async def test_ready_is_said_when_all_is_granted_only(node: Node) -> None:
    target = node.target()
    first, second = node.reserved(target, "vcs1"), node.shadow(target, 1)
    async with node.agent():
        assert (await node.apply(target, first, second, timeout_s=0.8)).phase == pb.WAITING
        assert can_open(target, "vcs1")
        assert not there(target, READY).exists()
        node.choose(second, "vcsa1")
        assert (await node.apply(target, first, second)).phase == pb.GRANTED
        assert there(target, READY).exists()
        third = node.shadow(target, 2)
        assert (await node.apply(target, first, second, third, timeout_s=0.8)).phase == pb.WAITING
        assert not there(target, READY).exists()
        node.choose(third, "vcsu1")
        assert (await node.apply(target, first, second, third)).phase == pb.GRANTED
        assert there(target, READY).exists()


async def test_a_loss_takes_all_away(node: Node, driver: Path) -> None:
    target = node.target()
    before = names(target)
    async with node.agent():
        await node.apply(target, reserved(node, target, "vcs1", driver))
        assert (await node.remove(target, policy=pb.LOST)).phase == pb.REMOVED
        assert mounted(target) == set()
        assert names(target) == before


async def test_a_restarted_container_gets_all_again(node: Node, driver: Path) -> None:
    target = node.target()
    shadow = reserved(node, target, "vcs1", driver)
    async with node.agent():
        await node.apply(target, shadow)
        again = node.restarted(target)
        assert (await node.apply(again, shadow)).phase == pb.GRANTED
        assert there(again, READY).exists()
        assert there(again, "/usr/bin/vendor-tool").read_text() == "tool"
        assert [path.name for path in node.settings.files_directory.iterdir()] == [again.box.id]
        assert (await node.remove(again)).phase == pb.REMOVED
        assert mounted(again) == set()


async def test_what_a_grant_does_not_want_any_more_goes_with_it(node: Node, driver: Path) -> None:
    """The vendor's driver was replaced before the grant was made once more."""
    target = node.target()
    shadow = reserved(node, target, "vcs1", driver)
    before = names(target)
    async with node.agent() as agent:
        await node.apply(target, shadow)
        node.kubelet.entries.clear()
        (driver / "tool").rename(driver / "tool-2")
        node.choose(shadow, "vcs1")
        agent.grafts.doubtful.add(PodUID(shadow.pod.uid))  # as after a verification that failed
        assert (await node.apply(target, shadow)).phase == pb.GRANTED
        assert (await node.remove(target)).phase == pb.REMOVED
        assert mounted(target) == set()
        assert names(target) == before


async def test_a_restart_of_the_agent_changes_nothing(node: Node, driver: Path) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, reserved(node, target, "vcs1", driver))
    before = mounted(target)
    assert there(target, READY).exists()
    async with node.agent():
        assert there(target, READY).exists()
        assert mounted(target) == before
        assert (await node.remove(target)).phase == pb.REMOVED
        assert mounted(target) == set()


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.value)
async def test_an_agent_that_was_killed_ends_mounted_or_clean(
    node: Node, driver: Path, point: Failpoint
) -> None:
    target = node.target()
    shadow = reserved(node, target, "vcs1", driver)
    before = names(target)
    async with killed_at(node, point) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Apply(node.apply_request(target, shadow), timeout=DEADLINE_S)
    assert not there(target, READY).exists()

    async with node.agent():
        assert there(target, "/opt/vendor/lib/libone.so").read_text() == "one"
        assert not there(target, READY).exists()
        assert (await node.apply(target, shadow)).phase == pb.GRANTED  # as the operator does
        assert there(target, READY).exists()
        assert (await node.remove(target)).phase == pb.REMOVED
        assert mounted(target) == set()
        assert names(target) == before


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.value)
async def test_what_was_begun_goes_when_the_reservation_went_meanwhile(
    node: Node, driver: Path, point: Failpoint
) -> None:
    target = node.target()
    shadow = reserved(node, target, "vcs1", driver)
    before = names(target)
    async with killed_at(node, point) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Apply(node.apply_request(target, shadow), timeout=DEADLINE_S)
    node.kubelet.forget(shadow.pod)

    async with node.agent():
        assert await node.states() == []
        assert mounted(target) == set()
        assert names(target) == before


async def test_a_crash_while_it_is_removed_ends_clean(
    node: Node, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended between the mounts and their mount points: what is left is found by the next one."""
    target = node.target()
    shadow = reserved(node, target, "vcs1", driver)
    before = names(target)
    async with node.agent():
        await node.apply(target, shadow)
        with monkeypatch.context() as patch:
            patch.setattr("devicemount_agent.grafts.Grafts.drop", _killed)
            patch.setattr("devicemount_agent.graft.places.Places.remove_file", _killed)
            with pytest.raises(grpc.aio.AioRpcError):
                await node.remove(target)
        assert not can_open(target, "vcs1")

    async with node.agent():
        await until(lambda: there(target, "/usr/bin/vendor-tool").read_text() == "tool", "again")
        assert (await node.remove(target)).phase == pb.REMOVED
        assert mounted(target) == set()
        assert names(target) == before


def _killed(*_: object) -> None:
    raise RuntimeError("killed")


PROFILE = """
name: vendor
resources: ["example.com/vcs"]
driverLibraries:
  sonames: [libvendor.so.1]
  advice: mount it
"""


async def test_a_library_that_the_target_lacks_is_said_until_it_has_it(node: Node) -> None:
    node.settings.profiles_directory.mkdir(parents=True, exist_ok=True)
    (node.settings.profiles_directory / "vendor.yaml").write_text(PROFILE)
    target = node.target()
    async with node.agent():
        state = await node.apply(target, node.reserved(target, "vcs1"))
        assert state.phase == pb.GRANTED
        (concern,) = state.shadow_pods[0].concerns
        assert concern.reason == "LibrariesMissing"
        assert "libvendor.so.1" in concern.message
    async with node.agent():  # and not forgotten
        (state,) = await node.states()
        assert [c.reason for c in state.shadow_pods[0].concerns] == ["LibrariesMissing"]
        there(target, "/usr/lib").mkdir(parents=True)
        there(target, "/usr/lib/libvendor.so.1").touch()
        async with asyncio.timeout(2 * DEADLINE_S):
            while True:
                (state,) = await node.states()
                if not state.shadow_pods[0].concerns:
                    break
                await asyncio.sleep(0.05)


async def test_in_a_restarted_container_ready_is_said_when_all_is_back(node: Node) -> None:
    target = node.target()
    first, second = node.reserved(target, "vcs1"), node.reserved(target, "vcsa1", ordinal=1)
    async with node.agent():
        await node.apply(target, first, second)
        assert there(target, READY).exists()
        again = node.restarted(target)
        gone = node.kubelet.shown.pop((second.pod.namespace, second.pod.name))
        assert (await node.apply(again, first, second, timeout_s=0.8)).phase == pb.WAITING
        assert can_open(again, "vcs1")
        assert not there(again, READY).exists()
        node.kubelet.shown[second.pod.namespace, second.pod.name] = gone
        assert (await node.apply(again, first, second)).phase == pb.GRANTED
        assert there(again, READY).exists()


async def test_what_is_asked_for_grows_and_shrinks_beside_what_is_in_use(
    node: Node, driver: Path
) -> None:
    target = node.target()
    first = reserved(node, target, "vcs1", driver)
    async with node.agent():
        one = await node.apply(target, first)
        assert isinstance(target.box.inside, Actor)
        target.box.inside.open("/dev/vcs1")
        others = [node.reserved(target, device, ordinal=n) for n, device in ((1, A), (2, U))]
        three = await node.apply(target, first, *others)
        assert three.phase == pb.GRANTED
        assert [shadow.container for shadow in three.shadow_pods] == ["notebook"] * 3
        assert three.shadow_pods[0].granted_unix_ns == one.granted_unix_ns
        assert all(can_open(target, device) for device in ("vcs1", A, U))
        assert there(target, READY).exists()
        busy = await node.remove(target, first)
        assert {s.uid: s.phase for s in busy.shadow_pods} == {
            first.pod.uid: pb.BUSY,
            **{other.pod.uid: pb.GRANTED for other in others},
        }
        assert can_open(target, "vcs1")
        for other in others:
            await node.remove(target, other)
        assert not can_open(target, A)
        assert can_open(target, "vcs1")
        assert {"/opt/vendor/lib", "/usr/bin/vendor-tool"} <= mounted(target)
        assert there(target, READY).exists()


async def test_an_edit_back_while_the_rest_is_waited_for_leaves_all_as_it_was(node: Node) -> None:
    target = node.target()
    first, rest = node.reserved(target, "vcs1"), node.shadow(target, 1)
    async with node.agent():
        await node.apply(target, first)
        growing = asyncio.create_task(node.apply(target, first, rest))
        await until(lambda: not there(target, READY).exists(), "something is missing")
        assert can_open(target, "vcs1")
        await node.remove(target, rest)
        with pytest.raises(grpc.aio.AioRpcError):
            await growing
        assert there(target, READY).exists()
        (state,) = await node.states()
        assert (state.phase, len(state.shadow_pods)) == (pb.GRANTED, 1)


async def test_the_loss_of_one_of_several_concerns_it_alone(node: Node) -> None:
    target = node.target()
    shadows = [node.reserved(target, device, ordinal=n) for n, device in enumerate(("vcs1", A))]
    async with node.agent():
        await node.apply(target, *shadows)
        gone = await node.remove(target, shadows[1], policy=pb.LOST)
        phases = {shadow.uid: shadow.phase for shadow in gone.shadow_pods}
        assert phases == {shadows[0].pod.uid: pb.GRANTED, shadows[1].pod.uid: pb.REMOVED}
        assert (can_open(target, "vcs1"), can_open(target, A)) == (True, False)
        assert not there(target, READY).exists(), "another one is asked for"


async def test_a_new_shadow_pod_that_fails_changes_nothing_of_what_is_in_use(node: Node) -> None:
    target = node.target()
    first, failed = node.reserved(target, "vcs1"), node.shadow(target, 1)
    async with node.agent():
        await node.apply(target, first)
        await node.remove(target, failed, policy=pb.LOST)
        assert there(target, READY).exists()
        assert can_open(target, "vcs1")


async def test_what_was_lost_and_is_not_wanted_any_more_is_told_by_one_more_apply(
    node: Node,
) -> None:
    target = node.target()
    first, second = node.reserved(target, "vcs1"), node.reserved(target, A, ordinal=1)
    async with node.agent():
        assert not (await node.apply(target, first, second)).incomplete
        assert (await node.remove(target, second, policy=pb.LOST)).incomplete
        assert not there(target, READY).exists()
    async with node.agent():
        (listed,) = await node.states()
        assert (listed.phase, listed.incomplete) == (pb.GRANTED, True)
        assert not (await node.apply(target, first)).incomplete
        assert there(target, READY).exists()
