# SPDX-License-Identifier: Apache-2.0
"""The record of a run, and that a process is known by more than its pid."""

import dataclasses
import json
import os
from pathlib import Path

from devicemount_testbed.processes import (
    Process,
    children_of,
    is_running,
    keep_descriptors_private,
    kill_and_wait,
    spawn_gated,
    start_ticks,
)
from devicemount_testbed.record import Record, boot_id, from_json, load, save, to_json

RECORD = Record(
    boot_id=boot_id(),
    relay_port=40001,
    netns=("dmtb-control",),
    cgroups=("dmtb-node1",),
    made_netns_dir=True,
    controllers=("hugetlb",),
    sysctls={"kernel/panic": "1"},
    crun="1.28",
    processes=(Process(component="etcd", pid=17, start_ticks=4711),),
)


def test_what_is_written_is_read_back() -> None:
    assert from_json(to_json(RECORD)) == RECORD


def test_a_record_from_before_there_was_crun_can_still_be_undone() -> None:
    old = json.loads(to_json(RECORD))
    del old["crun"]
    assert from_json(json.dumps(old)) == dataclasses.replace(RECORD, crun="")


def test_it_lists_the_mounts_that_hold_the_namespaces() -> None:
    assert RECORD.mounts == ("/run/netns/dmtb-control",)


def test_a_run_that_never_was_has_no_record(tmp_path: Path) -> None:
    assert load(tmp_path / "record.json") is None


def test_processes_of_an_earlier_boot_are_forgotten(tmp_path: Path) -> None:
    save(dataclasses.replace(RECORD, boot_id="another"), tmp_path / "record.json")
    found = load(tmp_path / "record.json")
    assert found is not None
    assert found.processes == ()
    assert found.netns == RECORD.netns


def test_a_reused_pid_is_another_process() -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    me = Process(component="me", pid=os.getpid(), start_ticks=ticks)
    assert is_running(me)
    former = dataclasses.replace(me, start_ticks=ticks - 1)
    assert not is_running(former)
    kill_and_wait(former, seconds=1)  # must not kill this very process


def test_a_process_runs_only_after_its_gate_opened(tmp_path: Path) -> None:
    made = tmp_path / "made"
    gated = spawn_gated(["touch", str(made)], component="touch", log=tmp_path / "log")
    assert is_running(gated.process)
    assert not made.exists()
    gated.open()
    os.waitpid(gated.process.pid, 0)
    assert made.exists()


def test_a_process_whose_starter_died_behind_the_gate_never_runs(tmp_path: Path) -> None:
    made = tmp_path / "made"
    gated = spawn_gated(["touch", str(made)], component="touch", log=tmp_path / "log")
    os.close(gated.gate)  # what the kernel does for a starter that is killed
    _, status = os.waitpid(gated.process.pid, 0)
    assert os.waitstatus_to_exitcode(status) != 0
    assert not made.exists()


def test_what_the_caller_had_open_is_closed_in_a_process(tmp_path: Path) -> None:
    held = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(held, True)  # noqa: FBT003  has no name
    try:
        keep_descriptors_private()
        log = tmp_path / "log"
        gated = spawn_gated(["ls", "-l", "/proc/self/fd"], component="ls", log=log)
        gated.open()
        os.waitpid(gated.process.pid, 0)
    finally:
        os.close(held)
    assert f"-> {tmp_path}\n" not in log.read_text()


def test_kill_waits_for_the_end(tmp_path: Path) -> None:
    gated = spawn_gated(["sleep", "1000"], component="sleep", log=tmp_path / "log")
    gated.open()
    kill_and_wait(gated.process, seconds=10)
    assert not is_running(gated.process)
    os.waitpid(gated.process.pid, 0)


def test_gone_processes_have_neither_start_nor_children() -> None:
    gone = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(gone, 0)
    assert start_ticks(gone) is None
    assert children_of(gone) == ()


def test_a_component_is_found_by_name() -> None:
    assert RECORD.process("etcd") == RECORD.processes[0]
    assert RECORD.process("unknown") is None
