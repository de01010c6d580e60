# SPDX-License-Identifier: Apache-2.0
"""What the agent reads of what a node lacks."""

import json
from pathlib import Path

import pytest

from devicemount_plugin.config import ResourceName
from devicemount_plugin.missing import Report

SPU, KVM, FUSE = (ResourceName(f"example.com/{name}") for name in ("spu", "kvm", "fuse"))


def said(directory: Path) -> object:
    return json.loads((directory / "missing.json").read_text())


def test_what_is_missing_is_said_until_it_is_there(tmp_path: Path) -> None:
    report = Report(tmp_path)
    report.write({SPU: "", KVM: ""})
    assert said(tmp_path) == {}
    report.write({SPU: "no driver", KVM: ""})
    assert said(tmp_path) == {SPU: "no driver"}
    report.write({SPU: "", KVM: ""})
    assert said(tmp_path) == {}


def test_another_plugins_entries_stay(tmp_path: Path) -> None:
    one, other = Report(tmp_path), Report(tmp_path)
    one.write({SPU: "no driver"})
    other.write({FUSE: "no module"})
    assert said(tmp_path) == {SPU: "no driver", FUSE: "no module"}
    one.write({SPU: ""})
    assert said(tmp_path) == {FUSE: "no module"}


def test_the_file_is_replaced_whole_and_on_change_only(tmp_path: Path) -> None:
    report = Report(tmp_path)
    report.write({SPU: "no driver"})
    first = (tmp_path / "missing.json").stat().st_ino
    report.write({SPU: "no driver"})
    assert (tmp_path / "missing.json").stat().st_ino == first
    with (tmp_path / "missing.json").open() as reader:
        report.write({SPU: "no node"})
        assert json.load(reader) == {SPU: "no driver"}
    assert said(tmp_path) == {SPU: "no node"}


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_file_is_written_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "missing.json").write_text(text)
    Report(tmp_path).write({SPU: "no driver"})
    assert said(tmp_path) == {SPU: "no driver"}


def test_a_directory_that_comes_later_is_written_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = Report(tmp_path / "later")
    report.write({SPU: "no driver"})
    report.write({SPU: "no driver"})
    assert len(caplog.messages) == 1
    (tmp_path / "later").mkdir()
    report.write({SPU: "no driver"})
    assert said(tmp_path / "later") == {SPU: "no driver"}
