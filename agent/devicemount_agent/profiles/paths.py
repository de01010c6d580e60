# SPDX-License-Identifier: Apache-2.0
"""Which paths of the node no profile can open up, and which need a profile that names them.

A device plugin's answer is trusted by the kubelet, so by default we do what the kubelet would do
with it; but into a container that runs already nothing is brought from where the node keeps its
own secrets and the sockets that command it, whatever a plugin, a CDI spec or a profile says.
"""

import re
from collections.abc import Collection
from pathlib import PurePosixPath

# In these, of these and above these nothing is mounted into a container.
NEVER = tuple(
    map(
        PurePosixPath,
        (
            "/boot",
            "/etc/gshadow",
            "/etc/kubernetes",
            "/etc/shadow",
            "/etc/ssh",
            "/proc/1",
            "/proc/kcore",
            "/proc/sys",
            "/proc/sysrq-trigger",
            "/root",
            "/run/containerd",
            "/run/containers",
            "/run/cri-dockerd.sock",
            "/run/crio",
            "/run/dbus",
            "/run/devicemount",
            "/run/devicemount-plugin",
            "/run/docker",
            "/run/docker.sock",
            "/run/k0s",
            "/run/k3s",
            "/run/systemd",
            "/sys/firmware",
            "/sys/fs",
            "/sys/kernel",
            "/var/lib/containerd",
            "/var/lib/containers",
            "/var/lib/docker",
            "/var/lib/etcd",
            "/var/lib/k0s",
            "/var/lib/kubelet",
            "/var/lib/rancher",
            "/var/snap",
        ),
    )
)
# In these only what a profile names. Of /dev that is what programs of the node share: vendors mount
# directories of their devices (/dev/dri/by-path), and no device on a mount of ours can be opened.
BY_NAME = tuple(
    map(
        PurePosixPath,
        (
            "/dev/hugepages",
            "/dev/mqueue",
            "/dev/pts",
            "/dev/shm",  # noqa: S108  # a place on the node
            "/etc",
            "/home",
            "/proc",
            "/sys",
            "/var/home",  # where /home leads to on some systems
        ),
    )
)

TOP = 2  # parts of /usr, /dev: a whole tree of the node

# No pattern of a profile allows memory, the kernel's log, or the node's disks. These are examples,
# to tell who wrote the pattern; _NEVER_NODE holds whatever was written.
NEVER_NODES = (
    "/dev/mem",
    "/dev/kmem",
    "/dev/port",
    "/dev/kmsg",
    "/dev/nvram",
    "/dev/mcelog",
    "/dev/console",
    "/dev/initctl",
    "/dev/cpu/0/msr",
    "/dev/snapshot",
    "/dev/btrfs-control",
    "/dev/mapper/control",
    "/dev/mapper/vg-root",
    "/dev/dm-0",
    "/dev/md0",
    "/dev/sda",
    "/dev/sda1",
    "/dev/vda",
    "/dev/vda1",
    "/dev/xvda",
    "/dev/xvda1",
    "/dev/hda",
    "/dev/nvme0",
    "/dev/nvme0n1",
    "/dev/nvme0n1p1",
    "/dev/mmcblk0",
    "/dev/mmcblk0p1",
    "/dev/disk/by-id/x",
    "/dev/block/8:0",
    "/dev/sg0",
    "/dev/bsg/0:0:0:0",
)
_NEVER_NODE = re.compile(
    r"(?:/.*)?/dev/(?:k?mem|port|kmsg|nvram|mcelog|console|initctl|cpu/[0-9]+/msr|snapshot"
    r"|btrfs-control|mapper/.+|dm-[0-9]+|md[0-9/].*|(?:s|xv)d[a-z]{1,2}[0-9]*|[hv]d[a-z][0-9]*"
    r"|n(?:vme|g)[0-9]+(?:n[0-9]+)?(?:p[0-9]+)?|mmcblk[0-9]+.*|disk/.+|block/.+|sg[0-9]+|bsg/.+)"
)
# Char 1:1 mem, 1:2 kmem, 1:4 port, 1:11 kmsg: whatever they are called.
NEVER_NUMBERS = frozenset({("c", 1, 1), ("c", 1, 2), ("c", 1, 4), ("c", 1, 11)})


def is_never(path: PurePosixPath, moved: Collection[PurePosixPath] = ()) -> bool:
    """Tell whether the path is one of the node's own, is in one, or has one in it.

    `moved` are those which this node has elsewhere.
    """
    return any(
        path == own or own in path.parents or path in own.parents for own in (*NEVER, *moved)
    )


def why_not_mounted(
    path: PurePosixPath,
    *,
    allowed: Collection[PurePosixPath] | None,
    also: Collection[PurePosixPath],
    moved: Collection[PurePosixPath],
) -> str:
    """Return why this place of the node is not mounted into a container; "" if it may be."""
    if is_never(path, moved) or len(path.parts) <= TOP:
        return "is the node's own"
    if _is_in(path, also):
        return ""
    if allowed is not None:
        return "" if _is_in(path, allowed) else "is outside of the profile's allowMounts"
    return "needs a profile whose alsoMounts names it" if _is_in(path, BY_NAME) else ""


def _is_in(path: PurePosixPath, places: Collection[PurePosixPath]) -> bool:
    return any(path == place or place in path.parents for place in places)


def is_never_node(path: str) -> bool:
    """Tell whether no pattern allows this device node."""
    return _NEVER_NODE.fullmatch(path) is not None


def allowed_of_never(pattern: re.Pattern[str]) -> str:
    """Return a node that no profile may allow and this pattern does; "" if there is none."""
    return next((node for node in NEVER_NODES if pattern.fullmatch(node)), "")
