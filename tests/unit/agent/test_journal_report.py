# SPDX-License-Identifier: Apache-2.0
"""What `devicemount-agent journal` prints, also of a journal that is damaged or in use."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from devicemount_agent.journal import Journal, boot_id
from devicemount_agent.journal_report import report
from devicemount_agent.ledger import Committed, Granted, Removed, Seen
from devicemount_agent.model import PodUID

from .test_journal import BOOT, KEY, grant, order

PRINTED = """\
journal in {directory}: version 1, {length} bytes
boot 8a5a7a3e-boot: 3 records
damage: none
leader: lease of 1970-01-01T00:00:00Z, transition 0
mounts whose last request is remembered: 1
grants: 1

team-a/notebook-0/notebook: committed
  since      2026-01-02T03:04:05Z
  mount      notebook (11111111-mount)
  pod        22222222-pod, container c1
  shadow pod dm-11111111-22222222-a (shadow-a)
  device     example.com/vcs=id-shadow-a
    /dev/vcs1 c 7:1 rw
  before us  c 7:1 nothing
  made       /dev/vcs1"""


def test_a_person_reads_it_while_the_agent_has_it_open(tmp_path: Path) -> None:
    opened = Journal(tmp_path, boot_id=BOOT)
    opened.append(Seen(KEY, order(3), 7))
    opened.append(Granted(grant()))
    opened.append(Committed(PodUID("shadow-a"), frozenset(), 1767323045_000000000))
    length = (tmp_path / "journal").stat().st_size

    assert "\n".join(report(tmp_path, boot_id=BOOT)) == PRINTED.format(
        directory=tmp_path, length=length
    )
    opened.close()


def test_damage_and_what_is_left_are_said(tmp_path: Path) -> None:
    opened = Journal(tmp_path, boot_id=BOOT)
    opened.append(Granted(grant()))
    opened.append(Removed(PodUID("shadow-b")))
    opened.close()
    raw = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(raw.replace(b"removed", b"remover"))

    lines = list(report(tmp_path, boot_id=BOOT))

    assert lines[2].startswith("damage: line 3: checksum does not match")
    assert "team-a/notebook-0/notebook: intent" in lines


def test_another_boots_journal_has_nothing_of_this_one(tmp_path: Path) -> None:
    opened = Journal(tmp_path, boot_id="another-boot")
    opened.append(Granted(grant()))
    opened.close()
    lines = list(report(tmp_path, boot_id=BOOT))
    assert lines[1] == f"boot {BOOT}: 0 records, none of it"
    assert "grants: 0" in lines


def test_a_name_that_would_move_the_cursor_is_printed_escaped(tmp_path: Path) -> None:
    opened = Journal(tmp_path, boot_id=BOOT)
    opened.append(Granted(replace(grant(), mount_name="\x1b[2Jnotebook\n")))
    opened.close()
    assert "  mount      \\x1b[2Jnotebook\\n (11111111-mount)" in report(tmp_path, boot_id=BOOT)


def test_the_command_prints_it_and_says_what_it_cannot_read(tmp_path: Path) -> None:
    Journal(tmp_path, boot_id=boot_id()).close()
    command = (sys.executable, "-m", "devicemount_agent", "journal", "--directory")
    for directory, status in ((tmp_path, 0), (tmp_path / "none", 1)):
        said = subprocess.run((*command, directory), capture_output=True, text=True, check=False)
        assert said.returncode == status, said.stderr
        assert ("damage: none" in said.stdout) == (status == 0)
        assert ("No such file or directory" in said.stderr) == (status == 1)


def test_what_is_no_journal_is_said_and_left_where_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "journal")
    lines = list(report(tmp_path, boot_id=BOOT))
    assert lines[2] == f"damage: no plain file at {tmp_path}/journal"
    assert (tmp_path / "journal").is_fifo()


def test_a_lock_that_is_none_is_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    command = (sys.executable, "-m", "devicemount_agent", "journal", "--directory", tmp_path)
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert (
        f"is no plain file, remove it when no other agent of this node runs: '{tmp_path}/lock'"
        in (said.stderr)
    )


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(report(tmp_path / "none", boot_id=BOOT))
