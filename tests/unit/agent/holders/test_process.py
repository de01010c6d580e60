# SPDX-License-Identifier: Apache-2.0
"""What a tenant may name (mounts, processes, cgroups) does not change what the kernel says around
it: only a newline ends a line of /proc.
"""

import os
from pathlib import Path

import pytest

from devicemount_agent.container.cgroup import process_cgroup
from devicemount_agent.holders.describe import pid_inside
from devicemount_agent.holders.process import mounted
from devicemount_agent.kernel import files
from devicemount_agent.model import DeviceNumber

LOOP = DeviceNumber("b", 7, 0)
LINE_ENDS = "\u2028\u2028a\x0b\x0bb\x85\x1c\r\rc\rd"


def every_file_says(text: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = directory / "said"
    said.write_bytes(text.encode())
    opened = os.open
    monkeypatch.setattr(files.os, "open", lambda _, flags: opened(said, flags))


def test_a_mount_point_of_line_separators_neither_hides_nor_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        f"21 20 0:5 / /{LINE_ENDS} rw shared:1 - tmpfs none rw\n22 20 7:0 / /mnt rw - ext4 x rw\n"
    )
    every_file_says(text, tmp_path, monkeypatch)
    assert mounted(1, frozenset({LOOP})).keys() == {LOOP}
    assert not mounted(1, frozenset({DeviceNumber("b", 7, 1), DeviceNumber("c", 7, 0)}))


def test_a_process_cannot_name_itself_another_pid() -> None:
    comm = Path(f"/proc/{os.getpid()}/comm")
    former = comm.read_bytes()
    comm.write_bytes(b"a\rb\x0bNSpid:\tz")
    try:
        assert pid_inside(os.getpid()) == os.getpid()
    finally:
        comm.write_bytes(former)


def test_a_cgroup_cannot_be_named_another_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"0::/own/{LINE_ENDS}\r0::/kubepods/podb/{'0' * 64}\n"
    every_file_says(text, tmp_path, monkeypatch)
    assert process_cgroup(1).path.is_relative_to(Path("/sys/fs/cgroup/unified/own"))
