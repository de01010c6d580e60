# SPDX-License-Identifier: Apache-2.0
"""A process that has the device open is never cut off by a deletion that can wait; it is ended by
one that may, and then exactly it and others like it."""

import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import pytest

from cluster.probing import processes
from cluster.world import DEADLINE_S, FUSE, LOOP, Mount, Pod, World, eventually
from devicemount_agent.holders.describe import start_time
from devicemount_agent.kernel.files import closing
from devicemount_testbed.api import MERGE_PATCH, Object, pod_path
from devicemount_testbed.stock_images import compiled

TERMINATE = {"whenBusy": "Terminate", "gracePeriodSeconds": 2}
TARGET = "/shared/target"  # what holds, maps, passes and takes, in each container


def test_a_busy_device_stays_until_its_holder_ends(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    mount = world.mount("busy", pod).ready()
    (path,) = mount.files()
    with pod.holding(path):
        mount.ask_delete()
        message = mount.not_ready("DeviceBusy", deadline_s=10)
        assert "tail -f /dev/null" in message
        (holder,) = mount.target["holders"]
        pids = pod.sh("pidof tail").split()
        assert str(holder["pid"]) in pids
        assert holder["command"] == "tail -f /dev/null"
        assert holder["pod"] == "notebook"
        assert pod.opens(path), "nothing is revoked while it is busy"
        assert len(mount.shadow_pods()) == 1
    mount.gone()
    assert pod.openable() == set()


def test_a_holder_is_no_obstacle_to_another_mount(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    held, other = world.mount("held", pod).ready(), world.mount("other", pod).ready()
    with pod.holding(held.files()[0]):
        other.delete()
        assert held.ready().files()


def test_a_holder_that_ends_by_itself_lets_the_deletion_end(world: World) -> None:
    pod = world.pod("notebook")
    mount = world.mount("busy", pod).ready()
    with pod.holding(mount.files()[0]):
        mount.ask_delete()
        mount.not_ready("DeviceBusy", deadline_s=10)
        pod.end_holders()
        mount.gone()
    eventually(lambda: not world.shadow_pods(), what="no shadow pod is left")


@dataclass(frozen=True)
class Job:
    """A process that has the device in its way, as status is to name it."""

    pod: str
    container: str
    pid: int
    command: str

    def is_alive(self, world: World) -> bool:
        check = world.pods[self.pod].run("kill", "-0", str(self.pid), container=self.container)
        return check.returncode == 0


def start(pod: Pod, command: str, *, says: str, container: str = "main", runs: str = "") -> Job:
    """Run a command as a daemon of the container; wait until it says that it is there."""
    script = f"setsid {command} </dev/null >/tmp/said-$$ 2>&1 & echo $! /tmp/said-$$"
    pid, said = pod.sh(script, container=container).split()
    eventually(
        lambda: says in pod.sh(f"cat {said}", container=container), what=f"{command} says {says}"
    )
    return Job(pod.name, container, int(pid), runs or command)


def named(mount: Mount) -> set[Job]:
    """Return the holders that status names."""
    return {
        Job(one["pod"], one["container"], one["pid"], one["command"])
        for one in mount.target.get("holders") or ()
    }


def container(name: str, **more: object) -> Object:
    shared = {"name": "shared", "mountPath": "/shared"}
    return {"name": name, "image": "localhost/busybox:1", "volumeMounts": [shared], **more}


def job_pod(world: World, name: str, node: str, **more: object) -> Pod:
    """Start a pod of two containers with one pid namespace, and with the program that holds."""
    pod = world.pod(
        name,
        node=node,
        shareProcessNamespace=True,
        containers=[
            container("main", securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}),
            container("sidecar"),
        ],
        volumes=[{"name": "shared", "emptyDir": {}}],
        **more,
    )
    subprocess.run(
        world.testbed.kubectl_command(
            *("exec", "-i", "-n", world.namespace, name, "-c", "main", "--"),
            *("sh", "-c", f"cat > {TARGET} && chmod +x {TARGET}"),
        ),
        env=world.testbed.kubectl_environment,
        input=compiled("target"),
        timeout=DEADLINE_S,
        check=True,
    )
    return pod


@pytest.fixture
def detached() -> Iterator[list[str]]:
    """Loop devices of this machine that get a file in a test; they are taken off it afterwards."""
    paths: list[str] = []
    yield paths
    for path in paths:
        subprocess.run(["losetup", "--detach", path], check=False, stderr=subprocess.DEVNULL)


def mounted(pod: Pod, path: str) -> Job:
    """Mount a file system on the loop device, in a mount namespace of one process."""
    attach = f"dd if=/dev/zero of=/tmp/disk bs=64k count=16 && losetup {path} /tmp/disk"
    made = pod.run("sh", "-c", f"{attach} && mke2fs {path} && mkdir -p /mnt")
    assert made.returncode == 0, made.stderr
    inside = f"mount -t ext4 {path} /mnt && echo mounted && exec sleep 1001"
    return start(pod, f"unshare -m sh -c '{inside}'", says="mounted", runs="sleep 1001")


def passed(giver: Pod, taker: Pod, path: str, *, container: str) -> Job:
    """Hand the open device over by SCM_RIGHTS."""
    name = f"@{giver.uid}"
    job = start(taker, f"{TARGET} take {name}", says="listening", container=container)
    assert giver.sh(f"{TARGET} pass {name} {path}").strip() == "passed"
    return job


@pytest.fixture
def competitor(world: World) -> Iterator[Callable[[str, int], str]]:
    """What asks for more devices than are free, and returns the path of a pod that waits."""
    yield partial(compete, world)
    world.api.delete(pod_path(world.namespace, "competitor"), {"gracePeriodSeconds": 0})


def compete(world: World, node: str, devices: int) -> str:
    limits = {LOOP: devices}
    body: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "competitor"},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {"name": "main", "image": "localhost/busybox:1", "resources": {"limits": limits}}
            ],
        },
    }
    world.api.call("POST", pod_path(world.namespace), body)
    return pod_path(world.namespace, "competitor")


def phase(world: World, path: str) -> str:
    return str(world.api.call("GET", path)["status"].get("phase"))


def last_end_s(pidfds: list[int]) -> float:
    """Wait for the ends of processes; return when the last was, by CLOCK_BOOTTIME."""
    for pidfd in pidfds:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        assert poller.poll(DEADLINE_S * 1000), "it lives"
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def first_start_s(pod_uid: str) -> float:
    """Return when the first process of a pod began, by the same clock, its sandbox's included."""
    started = (start_time(pid) for pid, _ in processes(in_cgroup=pod_uid))
    return min(started) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def job(world: World, node: str) -> Iterator[Pod]:
    """The pod of a job: with it end all holders, whatever becomes of the test."""
    pod = job_pod(world, "job", node)
    yield pod
    del world.pods[pod.name]
    pod.delete()


def test_each_kind_of_holder_is_waited_for_and_exactly_these_are_ended(
    world: World,
    node: str,
    job: Pod,
    competitor: Callable[[str, int], str],
    detached: list[str],
) -> None:
    free = world.free(node, LOOP)
    mount = world.mount("held", job, resource=LOOP, target={"container": "main"}).ready()
    (path,) = mount.files()
    detached.append(path)
    jobs = {
        mounted(job, path),
        start(job, f"{TARGET} hold {path}", says="holding"),
        start(job, f"{TARGET} map {path}", says="mapped"),
        passed(job, job, path, container="sidecar"),
    }
    bystander = start(job, "sh -c 'echo here; exec sleep 1002'", says="here")
    opener = start(job, f"{TARGET} probe /tmp/probed {path}", says="")
    waiting = competitor(node, free)
    mount.ask_delete()
    mount.not_ready("DeviceBusy")
    job.sh(f"kill {opener.pid}")
    eventually(lambda: named(mount) == jobs, what=f"status names {jobs}")
    assert [line.split()[2] for line in job.sh("cat /tmp/probed").splitlines()] == ["0"]
    assert phase(world, waiting) == "Pending"

    commands = {one.command for one in jobs}
    with ExitStack() as stack:
        pidfds = [
            stack.enter_context(closing(os.pidfd_open(pid)))
            for pid, line in processes(in_cgroup=job.uid)
            if line.rstrip("\0").replace("\0", " ") in commands
        ]
        assert len(pidfds) == len(jobs)
        wish = {"spec": {"unmount": TERMINATE}}
        world.api.call("PATCH", mount.path, wish, kind=MERGE_PATCH)
        ended_s = last_end_s(pidfds)
    eventually(lambda: phase(world, waiting) == "Running", what="the competitor runs")
    assert first_start_s(world.api.call("GET", waiting)["metadata"]["uid"]) > ended_s
    assert not any(one.is_alive(world) for one in jobs)
    mount.gone()
    assert bystander.is_alive(world)
    restarts = [one["restartCount"] for one in job.object()["status"]["containerStatuses"]]
    assert restarts == [0, 0]


def test_a_descriptor_that_went_to_another_pod_blocks_and_nobody_there_is_signalled(
    world: World,
) -> None:
    giver = job_pod(world, "giver", "node2", hostNetwork=True)
    taker = job_pod(world, "taker", "node2", hostNetwork=True)
    mount = world.mount("handed", giver, unmount=TERMINATE, target={"container": "main"}).ready()
    job = passed(giver, taker, mount.files()[0], container="main")
    mount.ask_delete()
    mount.not_ready("DeviceBusy")
    eventually(lambda: named(mount) == {job}, what=f"status names {job}")
    (holder,) = mount.target["holders"]
    assert "never signalled" in holder["note"]
    assert job.is_alive(world)
    taker.sh(f"kill {job.pid}")
    mount.gone()


def test_a_shared_device_another_tenant_uses_it_undisturbed(world: World) -> None:
    staying, leaving = world.pod("staying"), world.pod("leaving")
    theirs = world.mount("staying", staying, resource=FUSE).ready()
    ours = world.mount("leaving", leaving, resource=FUSE, unmount=TERMINATE).ready()
    with staying.holding(theirs.files()[0]):
        ours.delete(deadline_s=10)
        assert staying.opens(theirs.files()[0])
        assert staying.sh("pidof tail").split(), "the holder lives"
    theirs.ready()
