# SPDX-License-Identifier: Apache-2.0
"""What an agent with 200 mounts takes of its node: memory, and processor time when nothing happens.

On real cgroups of this machine, of both versions, with a kubelet and a runtime that obey;
FOOTPRINT_MOUNTS and FOOTPRINT_IDLE_S say how many and how long.
"""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from component.agent.conftest import Node, Shadow, Target, authority, hold, node
from component.agent.fences import fence
from component.agent.process import agent_process
from component.agent.test_damage import alive
from component.agent.test_drift import hierarchy
from component.agent.test_footprint import rss_kib
from devicemount_agent_api.failpoints import Failpoint
from devicemount_agent_api.v1 import agent_pb2 as pb

__all__ = ["authority", "hierarchy", "hold", "node"]

MOUNTS = int(os.environ.get("FOOTPRINT_MOUNTS", "200"))
IDLE_S = float(os.environ.get("FOOTPRINT_IDLE_S", "60"))
RSS_KIB = 90 << 10
CPU_SHARE = 0.01  # of one core
IDLE_RSS_KIB = 60 << 10
SETTLE_S = 5.0  # after the last grant: its fence is looked for, its device's health asked
CPUCLOCK_SCHED = 2


def processor_s(pid: int) -> float:
    """Return the processor time that a process has taken, by what the scheduler has added up.

    What /proc says is counted in ticks: who wakes for less than one is seen by chance.
    """
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)  # clock_getcpuclockid(3)


def reserved(node: Node, number: int) -> tuple[Target, Shadow]:
    target = node.target(f"notebook-{number}")
    target.mount_uid = f"{number:08x}-aaaa-4aaa-8aaa-111111111111"
    shadow = node.shadow(target)
    path = f"/dev/tty{number % 63 + 1}"  # nobody opens it; several have the same number
    node.kubelet.choose(shadow.pod, "example.com/vcs", {f"id-{number}": [(path, path)]})
    return target, alive(node, target, shadow)


@dataclass(frozen=True)
class Footprint:
    """What an agent takes."""

    idle_kib: int
    full_kib: int
    share: float  # of one core, while nothing happens

    def __str__(self) -> str:
        return (
            f"RSS {self.idle_kib} KiB idle, {self.full_kib} KiB with {MOUNTS} mounts,"
            f" {self.share:.2%} of a core"
        )


async def measured(node: Node, pid: int, fences: ExitStack) -> Footprint:
    idle_kib = rss_kib(pid)
    for number in range(MOUNTS):
        target, shadow = reserved(node, number)
        fences.enter_context(fence(node, shadow))
        assert (await node.apply(target, shadow)).phase == pb.GRANTED, number
    await asyncio.sleep(SETTLE_S)
    before = processor_s(pid)
    await asyncio.sleep(IDLE_S)
    return Footprint(idle_kib, rss_kib(pid), (processor_s(pid) - before) / IDLE_S)


async def test_two_hundred_mounts(
    node: Node, record_property: Callable[[str, object], None]
) -> None:
    with ExitStack() as fences:
        async with agent_process(node, Failpoint.AGENT_AFTER_CLEAR) as running:
            said = await measured(node, running.process.pid, fences)
    record_property("footprint", f"cgroup {node.lab.version.value}: {said}")
    assert said.idle_kib < IDLE_RSS_KIB, str(said)
    assert said.full_kib < RSS_KIB, str(said)
    assert said.share < CPU_SHARE, str(said)
