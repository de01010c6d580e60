# SPDX-License-Identifier: Apache-2.0
"""File systems that somebody serves are refused before a path in them is walked."""

import pytest

from devicemount_agent.errors import UnsupportedRuntime
from devicemount_agent.graft.mountinfo import Mounted, parsed
from devicemount_agent.graft.shape import _check_file_systems

ROOT = "1 0 0:1 / / rw - overlay overlay rw\n"
PLAIN = "2 1 0:2 / /dev rw,nosuid - tmpfs tmpfs rw\n3 2 0:3 / /dev/mqueue rw - mqueue mqueue rw\n"


def mounts(more: str) -> tuple[Mounted, ...]:
    return parsed((ROOT + PLAIN + more).removesuffix("\n").split("\n"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("4 2 0:4 / /dev rw - fuse.sshfs x rw\n", "its /dev is a fuse.sshfs file system"),
        ("4 2 0:4 / /dev/dri rw shared:1 - nfs4 x rw\n", "its /dev/dri is a nfs4 file system"),
    ],
    ids=["on /dev", "below /dev"],
)
def test_a_served_file_system_at_dev_is_named(line: str, said: str) -> None:
    with pytest.raises(UnsupportedRuntime) as refused:
        _check_file_systems(mounts(line))
    assert str(refused.value) == said


def test_what_runtimes_mount_and_what_lies_elsewhere_is_fine() -> None:
    elsewhere = "4 1 0:4 / /devices rw - fuse x rw\n5 1 0:5 / /data\u2028 rw - nfs x rw\n"
    _check_file_systems(mounts(elsewhere))
