# SPDX-License-Identifier: Apache-2.0
"""What a plugin leaves to the one that starts after it."""

from pathlib import Path

import pytest

from devicemount_plugin.config import DeviceID, ResourceName
from devicemount_plugin.discovery import Device
from devicemount_plugin.memory import Memory
from devicemount_plugin.tree import Number

GADGET = ResourceName("example.com/gadget")
KNOWN = {
    DeviceID("a"): Device(
        id=DeviceID("a"),
        label="/dev/a",
        nodes=("/dev/b",),
        directory="/sys/devices/virtual/a",
        serial_id=DeviceID("0403-6001-A1"),
        number=Number("char", 242, 7),
        names=("/dev/a", "/dev/b"),
    )
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert Memory(tmp_path, GADGET).read() == {}
    Memory(tmp_path, GADGET).write(KNOWN)
    assert Memory(tmp_path, GADGET).read() == KNOWN
    assert Memory(tmp_path, ResourceName("example.com_gadget/a")).read() == {}


def test_the_longest_resource_has_a_file(tmp_path: Path) -> None:
    long = ResourceName(f"{'a' * 253}/{'b' * 63}")
    Memory(tmp_path, long).write(KNOWN)
    assert Memory(tmp_path, long).read() == KNOWN


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"a": 1}', '{"a": {"id": "a", "label": "/dev/a", "nodes": 7}}', "\xff"]
)
def test_a_damaged_file_is_said_and_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    Memory(tmp_path, GADGET).write(KNOWN)
    (file,) = tmp_path.iterdir()
    file.write_text(text, encoding="latin-1")
    assert Memory(tmp_path, GADGET).read() == {}
    assert caplog.messages[0].startswith(f"known devices not read file={file}: ")
    Memory(tmp_path, GADGET).write(KNOWN)
    assert Memory(tmp_path, GADGET).read() == KNOWN


def test_a_directory_that_comes_later_is_written_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(tmp_path / "later", GADGET)
    memory.write(KNOWN)
    memory.write(KNOWN)
    assert len(caplog.messages) == 1
    (tmp_path / "later").mkdir()
    memory.write(KNOWN)
    assert memory.read() == KNOWN
