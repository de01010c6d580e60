# SPDX-License-Identifier: Apache-2.0
"""A tenant turns the directory of its device into a link to the node, a pipe, a mount, and back,
without end, while the device is mounted and unmounted: nothing outside of its container changes.
"""

import asyncio
import hashlib
import os
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from component.agent.conftest import RESOURCE, Node, Shadow, Target
from devicemount_agent.graft import graft
from devicemount_agent_api.errors import reason_of
from devicemount_agent_api.v1 import agent_pb2 as pb
from node.agent.containers import HIERARCHIES

from .conftest import count

ROUNDS = count("SWAPS", 40)
DIRECTORY = "/dev/swapped"
CANARIES = ("bin/sh", "bin/mknod", "usr/bin/mknod", "sbin/ldconfig", "bin/mount")


@pytest.fixture(scope="session")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("canary") / "canary"
    source = Path(__file__).with_name("canary.c")
    subprocess.run(["gcc", "-O2", "-static", "-o", str(binary), str(source)], check=True)
    return binary


@pytest.fixture
def victim(node: Node) -> Iterator[Path]:
    """A tree of the node's, where a link that is followed on the node would lead."""
    tree = node.directory / "victim"
    (tree / "below").mkdir(parents=True)
    (tree / "vcs1").write_text("the node's")
    (tree / "below/file").write_text("the node's too")
    yield tree


def digest(tree: Path) -> str:
    """Hash names, kinds, owners, times and contents of a tree."""
    said = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        facts = path.lstat()
        said.update(f"{path} {facts.st_mode} {facts.st_ino} {facts.st_uid}".encode())
        said.update(f"{facts.st_mtime_ns} {facts.st_rdev}".encode())
        if stat.S_ISREG(facts.st_mode):
            said.update(path.read_bytes())
    return said.hexdigest()


def device_files(tree: Path) -> list[Path]:
    """Return the device nodes of a tree on the node."""
    kinds = (stat.S_ISCHR, stat.S_ISBLK)
    return [p for p in tree.rglob("*") if any(kind(p.lstat().st_mode) for kind in kinds)]


def hostile(node: Node, victim: Path, canary: Path) -> Target:
    """A target that swaps, with canaries where an agent might look for programs."""
    target = node.target()
    inside = target.box.inside
    for name in CANARIES:
        path = target.box.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(canary, path)
    inside.tell("mount_proc", "/proc")
    # Both ways that a link could lead out: as the node's own path, and over a process of it.
    inside.tell("keep_swapping", DIRECTORY, str(victim), f"/proc/{os.getpid()}/root{victim}")
    return target


async def test_nothing_outside_of_the_container_changes(
    node: Node, victim: Path, canary: Path
) -> None:
    target = hostile(node, victim, canary)
    before = digest(victim)
    root_rules = (HIERARCHIES[target.box.cgroup.version] / "devices.list").read_text()
    rules = graft.allowed(target.box)
    outcomes: Counter[str] = Counter()
    async with node.agent():
        for number in range(ROUNDS):
            outcomes[await round_of(node, target, number)] += 1
            assert graft.allowed(target.box) == rules, number
            assert digest(victim) == before, number
    assert outcomes["granted"] > 0, outcomes
    assert outcomes.keys() - {"granted"}, f"the tenant never came between: {outcomes}"
    assert device_files(victim) == []
    assert device_files(node.directory / f"root-{target.box.inside.pid}") == []
    assert (HIERARCHIES[target.box.cgroup.version] / "devices.list").read_text() == root_rules
    assert not (target.box.root / "ran").exists(), "something of the container was executed"
    assert target.box.inside.process.poll() is None


async def round_of(node: Node, target: Target, number: int) -> str:
    """Mount, unmount; return what became of the mount."""
    shadow = chosen(node, target, number)
    try:
        state = await node.apply(target, shadow, timeout_s=20)
        said = "granted" if state.phase == pb.GRANTED else str(state.phase)
    except grpc.aio.AioRpcError as error:
        said = reason_of(error) or error.code().name
    give_up = asyncio.get_running_loop().time() + 60
    while (await node.remove(target, shadow, timeout_s=60)).phase != pb.REMOVED:
        assert asyncio.get_running_loop().time() < give_up, said
        await asyncio.sleep(0.01)
    node.kubelet.forget(shadow.pod)
    return said


def chosen(node: Node, target: Target, number: int) -> Shadow:
    """A shadow pod with a device that goes into the swapped directory."""
    shadow = node.shadow(target, number % 64)
    node.kubelet.entries.clear()
    node.kubelet.choose(shadow.pod, RESOURCE, {"vcs1": [("/dev/vcs1", f"{DIRECTORY}/below/vcs1")]})
    return shadow
