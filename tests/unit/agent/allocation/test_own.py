# SPDX-License-Identifier: Apache-2.0
"""Where a node has the kubelet's and the runtime's directories, when it has them elsewhere."""

from pathlib import Path, PurePosixPath

import pytest

import vendor_answers as vendors
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.own import moved_on
from devicemount_agent.graft.mountinfo import Mounted, parsed
from devicemount_agent.settings import Settings

NODE = [
    "20 1 8:1 / / rw - ext4 /dev/sda1 rw",
    "21 20 0:25 / /run rw - tmpfs tmpfs rw",
    "22 20 8:17 / /data rw - ext4 /dev/sdb1 rw",
    "23 20 8:17 /home /home rw - ext4 /dev/sdb1 rw",
]
KUBELET = "/var/lib/kubelet"


def volume(device: str, root: str, point: str) -> Mounted:
    """A volume of the agent: this directory of a file system, at a fixed path."""
    return parsed([f"90 80 {device} {root} {point} ro - x x rw"])[0]


USUAL = (
    volume("0:30", "/", "/"),
    volume("0:25", "/containerd", "/run/containerd"),
    volume("0:25", "/devicemount", "/run/devicemount"),
    volume("8:1", f"{KUBELET}/device-plugins", f"{KUBELET}/device-plugins"),
    volume("8:1", f"{KUBELET}/pod-resources", f"{KUBELET}/pod-resources"),
)


@pytest.mark.parametrize(
    ("link", "volumes", "places"),
    [
        (None, (), ()),
        (("/var/lib/kubelet", "/data/kubelet"), (), ("/data/kubelet",)),
        (None, (("8:17", "/k/pod-resources", f"{KUBELET}/pod-resources"),), ("/data/k",)),
        (
            None,
            (("8:17", "/home/k/pod-resources", f"{KUBELET}/pod-resources"),),
            ("/data/home/k", "/home/k"),
        ),
        (None, (("8:17", "/c", "/run/containerd"),), ("/data/c",)),
        (None, (("0:25", "/", "/run/containerd"),), ("/run/containerd.sock",)),
        (None, (("8:17", "/dm", "/run/devicemount"),), ("/data/dm/files", "/data/dm/journal")),
    ],
    ids=[
        "all as usual",
        "the kubelet's by a link",
        "its root directory by a setting",
        "seen at two places",
        "the runtime's state",
        "a runtime's socket in /run itself",
        "the agent's own",
    ],
)
def test_what_the_node_has_elsewhere_is_found(
    tmp_path: Path,
    link: tuple[str, str] | None,
    volumes: tuple[tuple[str, str, str], ...],
    places: tuple[str, ...],
) -> None:
    vendors.write(tmp_path, "/proc/1/mountinfo", "".join(f"{x}\n" for x in NODE))
    if link:
        (tmp_path / link[1].lstrip("/")).mkdir(parents=True)
        vendors.make_link(tmp_path, *link)
    mounts = (*USUAL, *(volume(*one) for one in volumes))
    moved = moved_on(Host(tmp_path), Settings(), mounts=mounts)
    assert moved == tuple(map(PurePosixPath, places))


def test_what_is_mounted_from_nowhere_on_the_node_is_no_place(tmp_path: Path) -> None:
    vendors.write(tmp_path, "/proc/1/mountinfo", f"{NODE[0]}\n")
    mounts = (*USUAL, volume("9:9", "/k/pod-resources", f"{KUBELET}/pod-resources"))
    assert moved_on(Host(tmp_path), Settings(), mounts=mounts) == ()
