# SPDX-License-Identifier: Apache-2.0
"""What a running shadow container shows: its bundle, and its own process."""

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import vendor_answers as vendors
from devicemount_agent.allocation import live
from devicemount_agent.allocation.bundle import TASKS, Bundle
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.live import Live, View, source_of, view_of
from devicemount_agent.allocation.said import Answer, Said, Subject
from devicemount_agent.allocation.shown import is_standard_node, is_vendors_mount, node_shown
from devicemount_agent.container.cri import ContainerFacts
from devicemount_agent.container.runtimes import RuntimeFacts
from devicemount_agent.errors import AllocationUnknown, NotAllowed
from devicemount_agent.graft.mountinfo import Mounted, parsed
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import (
    BindMount,
    ContainerID,
    DeviceID,
    DeviceNumber,
    EnvVar,
    ResourceName,
)
from readers import HOLD_ID, SHADOW, FakeRuntime, shipped_profiles

SPU = DeviceNumber("c", 240, 7)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A card of MOFFETT behind /dev/spu0, and a device of somebody else."""
    vendors.make_node(tmp_path, {"path": "/dev/spu0", "major": 240, "minor": 7})
    vendors.make_node(tmp_path, {"path": "/dev/other", "major": 240, "minor": 8})
    vendors.write(tmp_path, "/sys/devices/pci0000:00/0000:17:00.0/vendor", "0x1f36\n")
    vendors.write(
        tmp_path, "/sys/devices/pci0000:00/0000:17:00.0/spu/spu0/uevent", "DEVNAME=spu0\n"
    )
    place = tmp_path / "sys/devices/pci0000:00/0000:17:00.0/spu/spu0"
    (place / "device").symlink_to("../../../0000:17:00.0")
    vendors.make_link(
        tmp_path, "/sys/dev/char/240:7", "../../devices/pci0000:00/0000:17:00.0/spu/spu0"
    )
    vendors.write(tmp_path, "/opt/vendor/lib.so", "")
    return tmp_path


def subject(resource: str) -> Subject:
    name = ResourceName(resource)
    profile = shipped_profiles().usual(name)
    return Subject(name, frozenset({DeviceID("0")}), Answer(), profile, SHADOW.uid)


def test_a_shown_node_is_found_on_the_node_by_its_number(node: Path) -> None:
    spu = subject("moffett.ai/spu")
    for path in ("/dev/spu0", "/dev/called/otherwise"):
        found = node_shown(Host(node), spu, path, SPU)
        assert found is not None
        assert (found.path, found.host_path, found.number) == (path, "/dev/spu0", SPU)


def test_a_node_that_is_not_the_vendors_is_none_of_the_allocation(node: Path) -> None:
    other = DeviceNumber("c", 240, 8)
    assert node_shown(Host(node), subject("moffett.ai/spu"), "/dev/other", other) is None


@pytest.mark.parametrize(
    ("number", "error"),
    [(DeviceNumber("c", 240, 9), AllocationUnknown), (DeviceNumber("c", 1, 1), NotAllowed)],
    ids=["not on the node", "memory"],
)
def test_a_node_that_cannot_be_ours_is_refused(
    node: Path, number: DeviceNumber, error: type[Exception]
) -> None:
    with pytest.raises(error):
        node_shown(Host(node), subject("example.com/gadget"), "/dev/x", number)


def bundle(node: Path, **changes: Any) -> None:
    content = {
        "process": {"env": ["PATH=/", "LD_LIBRARY_PATH=/opt/vendor", "SECRET=1"]},
        "linux": {
            "devices": [
                {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
                {"path": "/dev/spu0", "type": "c", "major": 240, "minor": 7, "fileMode": 438},
            ],
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 240, "minor": 7, "access": "rw"},
                ]
            },
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/hosts", "source": "/var/lib/kubelet/h", "options": ["rbind"]},
            {"destination": "/asked", "source": "/opt/vendor", "options": ["rbind"]},
            {"destination": "/opt/x", "source": "/opt/vendor/lib.so", "options": ["ro", "rbind"]},
            {"destination": "/kube", "source": "/var/lib/kubelet", "options": ["rbind"]},
        ],
    } | changes
    vendors.write(node, f"/run/containerd/{TASKS}/{HOLD_ID}/config.json", json.dumps(content))


async def read(node: Path) -> Said | None:
    runtime = FakeRuntime(mounts=frozenset({"/asked"}))
    states = (node / "elsewhere", node / "run/containerd")
    return await Bundle(Host(node), runtime, states).read(subject("moffett.ai/spu"))


async def test_a_bundle_shows_devices_and_what_was_mounted_beyond_the_request(node: Path) -> None:
    bundle(node)
    said = await read(node)
    assert said is not None
    assert [(n.path, n.number, str(n.access)) for n in said.nodes] == [("/dev/spu0", SPU, "rw")]
    assert said.edits.mounts == (BindMount("/opt/x", "/opt/vendor/lib.so", read_only=True),)
    assert said.edits.env == (EnvVar("LD_LIBRARY_PATH", "/opt/vendor"),)


def hook(name: str, *arguments: str) -> dict[str, Any]:
    return {"path": "/usr/bin/nvidia-cdi-hook", "args": ["nvidia-cdi-hook", name, *arguments]}


async def test_what_a_bundles_hooks_would_have_done_is_said(node: Path) -> None:
    vendors.write(node, "/opt/vendor/libg.so.1.2", "")
    vendors.make_link(node, "/opt/vendor/libg.so.1", "libg.so.1.2")
    library = "/opt/vendor/libg.so.1.2"
    hooks = [
        hook("create-symlinks", "--link", "libg.so.1::/usr/lib/g/libg.so"),
        hook("update-ldcache", "--folder", "/usr/lib/g"),
    ]
    bundle(
        node,
        mounts=[{"destination": "/usr/lib/g/libg.so.1.2", "source": library, "options": ["bind"]}],
        hooks={"createContainer": hooks, "prestart": [{"path": "/usr/bin/others"}]},
    )
    said = await read(node)
    assert said is not None
    assert {(link.path, link.target) for link in said.edits.links} == {
        ("/usr/lib/g/libg.so", "libg.so.1"),
        ("/usr/lib/g/libg.so.1", "libg.so.1.2"),
    }
    assert said.edits.env == (EnvVar("LD_LIBRARY_PATH", "/opt/vendor:/usr/lib/g"),)


async def test_a_hook_of_a_bundle_that_is_not_known_is_refused_by_name(node: Path) -> None:
    bundle(node, hooks={"createContainer": [hook("setup-tenant", "--fast")]})
    with pytest.raises(AllocationUnknown, match=r"hook /usr/bin/nvidia-cdi-hook \(setup-tenant"):
        await read(node)


async def test_a_bundle_without_a_device_says_nothing(node: Path) -> None:
    bundle(node, linux={})
    assert await read(node) is None


async def test_where_no_bundle_is_nothing_is_said(node: Path) -> None:
    assert await read(node) is None


async def test_a_bundle_that_is_none_is_said(node: Path) -> None:
    vendors.write(node, f"/run/containerd/{TASKS}/{HOLD_ID}/config.json", "[")
    with pytest.raises(AllocationUnknown, match="is no OCI spec"):
        await read(node)


async def test_a_privileged_shadow_container_shows_nothing_that_counts(node: Path) -> None:
    bundle(node)
    runtime = FakeRuntime(runtime=RuntimeFacts(allows_all=True))
    host = Host(node)
    for reader in (Bundle(host, runtime, (node / "run/containerd",)), Live(host, runtime)):
        with pytest.raises(AllocationUnknown, match="the shadow pod's container is privileged"):
            await reader.read(subject("moffett.ai/spu"))


def test_a_process_that_is_not_the_shadow_pods_is_not_looked_at() -> None:
    facts = ContainerFacts(
        id=ContainerID("c0ffee"),
        pod_uid=SHADOW.uid,
        namespace="team-a",
        pod_name=SHADOW.name,
        name="hold",
        is_running=True,
        pid=os.getpid(),
    )
    with pytest.raises(AllocationUnknown, match="is not the shadow pod's"):
        view_of(facts)


def test_a_process_is_looked_at_in_its_own_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "owner_of", lambda pid: (SHADOW.uid, HOLD_ID))
    view = view_of(
        ContainerFacts(
            id=HOLD_ID,
            pod_uid=SHADOW.uid,
            namespace="team-a",
            pod_name=SHADOW.name,
            name="hold",
            is_running=True,
            pid=os.getpid(),
        )
    )
    assert ("/dev/null", DeviceNumber("c", 1, 3)) in view.nodes
    assert not any(path.startswith("/dev/pts/") for path, _ in view.nodes)
    assert "/proc" in {str(mount.point) for mount in view.mounts}


async def test_what_a_volume_brings_into_dev_was_not_allocated(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendors.write(node, "/proc/1/mountinfo", "\n".join(MOUNTS))
    view = View((("/dev/spu0", SPU), ("/dev/host/spu1", SPU)), (), None)
    monkeypatch.setattr(live, "view_of", lambda facts: view)
    for volume, shown in (("/dev/host", ["/dev/spu0"]), ("/dev", [])):
        reader = Live(Host(node), FakeRuntime(mounts=frozenset({volume})))
        said = await reader.read(subject("moffett.ai/spu"))
        assert [found.path for found in (said or Said()).nodes] == shown


MOUNTS = r"""
21 1 0:20 / /proc rw shared:1 - proc proc rw
22 1 8:1 / / rw shared:2 - ext4 /dev/sda1 rw
23 22 8:2 /@data /var/lib rw - btrfs /dev/sdb rw
24 22 8:1 /opt/with\040blank /mnt/a\040b ro,nosuid - ext4 /dev/sda1 rw
""".strip().splitlines()


def mounted(device: str, root: str) -> Mounted:
    """Of a container, somewhere."""
    point = PurePosixPath("/somewhere")
    return Mounted(id=1, device=device, root=root, point=point, is_shared=False, kind="ext4")


def test_a_mount_of_a_container_is_found_on_the_node() -> None:
    on_node = parsed(MOUNTS)
    assert [mount.is_read_only for mount in on_node] == [False, False, False, True]
    inside = mounted("8:1", "/usr/lib/x.so")
    assert source_of(inside, on_node) == "/usr/lib/x.so"
    below = mounted("8:2", "/@data/vendor")
    assert source_of(below, on_node) == "/var/lib/vendor"
    assert source_of(mounted("8:1", "/opt/with blank/x"), on_node) == "/mnt/a b/x"
    assert source_of(mounted("0:99", "/"), on_node) is None


def test_a_long_file_of_proc_is_read_to_its_end() -> None:
    """The kernel gives a page or so at a time: a node's mounts have hundreds of them."""
    lines = Host(Path("/")).text("/proc/kallsyms", limit_bytes=1 << 20)
    assert len(lines) == 1 << 20


def test_directories_without_end_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / Path(*("d" * 20))).mkdir(parents=True)
    with closing(os.open(tmp_path, os.O_RDONLY)) as fd, pytest.raises(AllocationUnknown):
        list(live._nodes_below(fd, "/dev"))


@pytest.mark.parametrize(
    ("path", "is_standard"),
    [("/dev/null", True), ("/dev/pts/0", True), ("/dev/nvidia0", False), ("/dev/nullx", False)],
)
def test_what_every_container_has_is_no_allocation(path: str, *, is_standard: bool) -> None:
    assert is_standard_node(path) is is_standard
    assert not is_vendors_mount("/dev/shm", ())
    assert not is_vendors_mount("/sys/fs/cgroup", ())
    assert not is_vendors_mount("/data", ("/data",))
    assert is_vendors_mount("/usr/lib/x.so", ("/data",))
