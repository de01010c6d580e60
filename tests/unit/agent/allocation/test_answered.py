# SPDX-License-Identifier: Apache-2.0
"""From a device plugin's answer to nodes and mounts of the node, and what never is one."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devicemount_agent.allocation.answered import Answered
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.kubelet import Entry
from devicemount_agent.allocation.said import Answer, Ask, Said, Subject
from devicemount_agent.errors import AllocationUnknown, DeviceMountError, NotAllowed
from devicemount_agent.model import Access, BindMount, DeviceID, DeviceNumber, ResourceName
from devicemount_agent.profiles.profile import Profile
from devicemount_node_api import deviceplugin_pb2
from readers import SHADOW, shipped_profiles, sources_on

GADGET = ResourceName("example.com/gadget")
NODES = {"gadget": (240, 1), "dir/a": (240, 2), "dir/sub/b": (240, 3), "memory": (1, 1)}


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's root: devices, a directory of them, files, and links that lead here and there."""
    for name, (major, minor) in NODES.items():
        path = tmp_path / "dev" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(path, stat.S_IFCHR | 0o660, os.makedev(major, minor))
    for name in ("dev/file", "etc/passwd", "opt/vendor/lib.so", "var/lib/kubelet/pki/key"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "dev/dir/link").symlink_to("/dev/gadget")
    (tmp_path / "dev/by-name").symlink_to("gadget")
    (tmp_path / "dev/out").symlink_to("/etc/passwd")
    (tmp_path / "dev/far").symlink_to("../../../../../../etc/passwd")
    (tmp_path / "dev/loop").symlink_to("loop")
    (tmp_path / "opt/vendor/keys").symlink_to("/var/lib/kubelet/pki")
    (tmp_path / "opt/vendor/current").symlink_to("lib.so")
    return tmp_path


def subject(answer: Answer, profile: Profile | None = None) -> Subject:
    generic = shipped_profiles().usual(GADGET)
    return Subject(GADGET, frozenset({DeviceID("g-0")}), answer, profile or generic, SHADOW.uid)


async def read(root: Path, answer: Answer, profile: Profile | None = None) -> Said:
    said = await Answered(Host(root)).read(subject(answer, profile))
    assert said is not None
    return said


def devices(*specs: tuple[str, str, str]) -> Answer:
    return Answer(
        devices=[
            deviceplugin_pb2.DeviceSpec(host_path=host, container_path=inside, permissions=may)
            for host, inside, may in specs
        ]
    )


def mount(host: str, inside: str = "/opt/x") -> Answer:
    one = deviceplugin_pb2.Mount(host_path=host, container_path=inside, read_only=True)
    return Answer(mounts=[one])


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (("/dev/file", "/dev/file", "rw"), AllocationUnknown, "is no device node"),
        (("/dev/gone", "/dev/gone", "rw"), AllocationUnknown, "does not exist on the node"),
        (("/dev/loop", "/dev/loop", "rw"), AllocationUnknown, "symbolic links"),
        (("/dev/out", "/dev/out", "rw"), NotAllowed, "is /etc/passwd, outside of /dev"),
        (("/dev/far", "/dev/far", "rw"), NotAllowed, "is /etc/passwd, outside of /dev"),
        (("/dev/../etc/passwd", "/dev/x", "rw"), NotAllowed, "outside of /dev"),
        (("/dev", "/dev", "rw"), NotAllowed, "outside of /dev"),
        (("/dev/memory", "/dev/x", "rw"), NotAllowed, "c 1:1: never granted"),
        (("/dev/gadget", "dev/x", "rw"), AllocationUnknown, "is no path in a container"),
        (("/dev/gadget", "/dev/../x", "rw"), AllocationUnknown, "is no path in a container"),
        (("/dev/gadget", "/", "rw"), AllocationUnknown, "is no path in a container"),
        (("/dev/gadget", "/dev/x", "m"), AllocationUnknown, "is no device in a container"),
        (("/dev/gadget", "/dev/x", ""), AllocationUnknown, "is no device in a container"),
    ],
    ids=lambda value: value[0] + " as " + value[1] if isinstance(value, tuple) else None,
)
async def test_what_is_no_device_below_dev_is_refused(
    node: Path, spec: tuple[str, str, str], error: type[DeviceMountError], message: str
) -> None:
    with pytest.raises(error, match=message):
        await read(node, devices(spec))


async def test_a_node_is_taken_with_its_number_and_access(node: Path) -> None:
    (found,) = (await read(node, devices(("/dev/by-name", "/dev/mine", "rm")))).nodes
    assert (found.path, found.host_path) == ("/dev/mine", "/dev/gadget")
    assert (found.number, found.access) == (DeviceNumber("c", 240, 1), Access.READ)


async def test_a_directory_means_the_nodes_below_it_and_no_link_in_it(node: Path) -> None:
    said = await read(node, devices(("/dev/dir", "/dev/inside", "rw")))
    assert [(n.path, n.number.minor) for n in said.nodes] == [
        ("/dev/inside/a", 2),
        ("/dev/inside/sub/b", 3),
    ]


async def test_the_same_node_twice_has_what_both_allow(node: Path) -> None:
    answer = devices(("/dev/gadget", "/dev/x", "r"), ("/dev/gadget", "/dev/x", "w"))
    (found,) = (await read(node, answer)).nodes
    assert str(found.access) == "rw"


async def test_two_devices_at_one_path_are_not_guessed_about(node: Path) -> None:
    with pytest.raises(AllocationUnknown, match="two devices at /dev/x"):
        await read(node, devices(("/dev/gadget", "/dev/x", "rw"), ("/dev/dir/a", "/dev/x", "rw")))


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("/opt/vendor/keys", r"/opt/vendor/keys \(/var/lib/kubelet/pki\): is the node's own"),
        ("/var/lib/kubelet", "is the node's own"),
        ("/var/lib", "is the node's own"),
        ("/opt", "is the node's own"),
        ("/", "is the node's own"),
        ("/etc/passwd", "needs a profile whose alsoMounts names it"),
        ("/dev/shm", "needs a profile whose alsoMounts names it"),
        ("/data/kubelet/pods", "is the node's own"),
        ("/data/kubelet", "is the node's own"),
    ],
)
async def test_what_is_the_nodes_own_is_not_mounted(node: Path, host: str, message: str) -> None:
    (node / "dev/shm").mkdir()
    (node / "data/kubelet/pods").mkdir(parents=True)
    moved = Host(node, moved=[PurePosixPath("/data/kubelet")])
    with pytest.raises(NotAllowed, match=message):
        await Answered(moved).read(subject(mount(host)))


async def test_what_a_profile_names_besides_is_mounted_and_nothing_else_of_it(node: Path) -> None:
    profile = Profile(name="x", resources=("x",), also_mounts=("/etc/passwd",))
    said = await read(node, mount("/etc/passwd"), profile)
    assert [m.host_path for m in said.edits.mounts] == ["/etc/passwd"]
    assert (await read(node, mount("/opt/vendor/lib.so"), profile)).edits.mounts
    narrow = Profile(
        name="x", resources=("x",), allow_mounts=("/srv/x",), also_mounts=("/etc/passwd",)
    )
    assert (await read(node, mount("/etc/passwd"), narrow)).edits.mounts
    with pytest.raises(NotAllowed, match="is outside of the profile's allowMounts"):
        await read(node, mount("/opt/vendor/lib.so"), narrow)


async def test_a_mount_is_what_the_link_leads_to(node: Path) -> None:
    said = await read(node, mount("/opt/vendor/current"))
    assert said.edits.mounts == (BindMount("/opt/x", "/opt/vendor/lib.so", read_only=True),)


async def test_a_mounted_device_is_a_node_without_a_rule_of_its_own(node: Path) -> None:
    (found,) = (await read(node, mount("/dev/by-name", "/dev/by-path/x"))).nodes
    assert (found.number, found.access) == (DeviceNumber("c", 240, 1), Access.NONE)


async def test_an_answer_that_is_none_is_said(node: Path) -> None:
    garbled = Entry(SHADOW.uid, "hold", GADGET, frozenset({DeviceID("g-0")}), b"\xff\xff\xff")
    with pytest.raises(AllocationUnknown, match="garbled"):
        await sources_on(node).devices([garbled], Ask(SHADOW, "team-a", accept_env_file=False))


async def test_several_ids_share_the_nodes_of_their_answer(node: Path) -> None:
    raw = devices(("/dev/gadget", "/dev/gadget", "rw")).SerializeToString()
    two = Entry(SHADOW.uid, "hold", GADGET, frozenset(map(DeviceID, "ba")), raw)
    found = await sources_on(node).devices([two], Ask(SHADOW, "team-a", accept_env_file=False))
    assert [device.id for device in found] == ["a", "b"]
    assert len({device.nodes for device in found}) == 1


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("node")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(raw=st.binary(max_size=200))
async def test_no_bytes_of_an_answer_are_a_success_without_a_device(
    empty: Path, raw: bytes
) -> None:
    entry = Entry(SHADOW.uid, "hold", GADGET, frozenset({DeviceID("g-0")}), raw)
    with pytest.raises(DeviceMountError):
        await sources_on(empty).devices([entry], Ask(SHADOW, "team-a", accept_env_file=True))
