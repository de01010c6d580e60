# SPDX-License-Identifier: Apache-2.0
"""The device files of a node, and the archive that it unpacks."""

import stat
import tarfile
from pathlib import Path

from devicemount_testbed.devices import (
    BASE,
    KVM,
    MANY,
    MANY_MAJOR,
    device_files,
    write_devices,
)


def test_no_path_and_no_number_is_there_twice() -> None:
    assert len({file.path for file in BASE}) == len(BASE)
    assert len({(file.kind, file.major, file.minor) for file in BASE}) == len(BASE)


def test_many_have_a_number_that_no_driver_of_this_machine_has() -> None:
    many = [file for file in BASE if file.path.startswith("many")]
    assert [(file.major, file.minor) for file in many] == [(MANY_MAJOR, n) for n in range(MANY)]
    taken = Path("/proc/devices").read_text().partition("Block devices:")[0]
    assert MANY_MAJOR not in [int(line.split()[0]) for line in taken.splitlines()[1:] if line]


def test_a_node_has_kvm_where_the_machine_has_it() -> None:
    paths = [file.path for file in device_files()]
    assert ("kvm" in paths) == KVM.is_char_device()


def test_the_archive_holds_every_device_with_mode_and_number(tmp_path: Path) -> None:
    write_devices(tmp_path / "devices.tar")
    with tarfile.open(tmp_path / "devices.tar") as archive:
        members = archive.getmembers()
    assert [(m.name, m.mode, m.devmajor, m.devminor) for m in members] == [
        (file.path, file.mode, file.major, file.minor) for file in device_files()
    ]
    assert all(member.uid == 0 for member in members)
    kinds = {stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE}
    assert [m.type for m in members] == [kinds[file.kind] for file in device_files()]
