# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to the testbed, `down` leaves the machine as it was.

These tests start and end the testbed themselves, so they are no part of tests/testbed/cluster.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from devicemount_testbed.cgroups import delegated_controllers
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.layout import Layout, default_layout
from devicemount_testbed.lifecycle import SYSCTLS, down, is_healthy, up
from devicemount_testbed.preflight import read_mounts, unified_root, v1_hierarchies
from devicemount_testbed.processes import is_running, start_ticks
from devicemount_testbed.record import load

DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What the testbed must give back as it found it."""

    netns: frozenset[str]
    mounts: tuple[str, ...]
    links: frozenset[str]
    cgroups: frozenset[Path]
    controllers: frozenset[str]
    sysctls: tuple[str, ...]
    processes: frozenset[str]


def observe(layout: Layout) -> Machine:
    mounts = read_mounts()
    netns = Path("/run/netns")
    roots = {*v1_hierarchies(mounts).values(), unified_root()}
    return Machine(
        netns=frozenset(os.listdir(netns)) if netns.exists() else frozenset(),  # noqa: PTH208
        mounts=tuple(sorted(mounts.splitlines())),
        links=frozenset(path.name for path in Path("/sys/class/net").iterdir()),
        cgroups=frozenset(found for root in roots for found in root.rglob("dmtb-*")),
        controllers=frozenset(delegated_controllers()),
        sysctls=tuple((Path("/proc/sys") / name).read_text() for name in SYSCTLS),
        processes=frozenset(processes_of_testbed(layout)),
    )


def processes_of_testbed(layout: Layout) -> set[str]:
    """Find what runs from the cache or as the relay, recorded or not."""
    found = set()
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or start_ticks(int(directory.name)) is None:
            continue
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(layout.bin) in command or "devicemount_testbed.relay" in command:
            found.add(command)
    return found


@pytest.fixture
def layout() -> Iterator[Layout]:
    where = default_layout()
    if load(where.record) is not None:
        pytest.skip("a testbed is there and these tests would end it: make clean first")
    yield where
    down(where)


@pytest.fixture
def before(layout: Layout) -> Machine:
    return observe(layout)


def test_up_is_quick_the_second_time_and_down_removes_all(layout: Layout, before: Machine) -> None:
    up(layout)
    began = time.monotonic()
    up(layout)
    assert time.monotonic() - began < 5
    assert observe(layout) != before
    down(layout)
    assert observe(layout) == before
    down(layout)  # nothing there: fine


def test_down_after_the_relay_and_nodes_with_pods_were_killed(
    layout: Layout, before: Machine
) -> None:
    up(layout)
    testbed = Testbed.from_record(layout)
    run_a_pod_on_each_node(testbed)
    for component in ("relay", "node1", "node3"):
        process = testbed.record.process(component)
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        await_condition(lambda process=process: not is_running(process))  # type: ignore[misc]
    assert not is_healthy(layout)
    down(layout)
    assert observe(layout) == before


@pytest.mark.parametrize("component", ["kube-apiserver", "node3-init"])
def test_down_after_the_testbed_itself_was_killed_while_it_started(
    layout: Layout, before: Machine, component: str
) -> None:
    starting = subprocess.Popen([sys.executable, "-m", "devicemount_testbed", "up"])
    try:
        await_condition(lambda: has_recorded(layout, component))
    finally:
        starting.kill()
        starting.wait()
    down(layout)
    assert observe(layout) == before


def run_a_pod_on_each_node(testbed: Testbed) -> None:
    account = "serviceaccount/default"
    testbed.kubectl("wait", "--for=create", account, f"--timeout={DEADLINE_S}s")
    for node in testbed.nodes:
        place = json.dumps({"spec": {"nodeName": node.name}})
        image = "--image=localhost/busybox:1"
        testbed.kubectl("run", node.name, image, "--image-pull-policy=Never", "--overrides", place)
    testbed.kubectl("wait", "--for=condition=Ready", "pod", "--all", f"--timeout={DEADLINE_S}s")


def has_recorded(layout: Layout, component: str) -> bool:
    record = load(layout.record)
    return record is not None and record.process(component) is not None


def await_condition(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
