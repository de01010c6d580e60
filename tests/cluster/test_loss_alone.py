# SPDX-License-Identifier: Apache-2.0
"""While no operator runs, shadow pods are deleted, deleted at once, and preempted, and others wait
for their devices: never do two tenants have one, whoever holds it.

All ways of all nodes at once, since the operator is missed by everybody. The clock is the
machine's, which all nodes and containers share.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import pytest

from cluster.failing import OPERATOR
from cluster.probing import (
    Opened,
    filled,
    post,
    priority_classes,
    prober,
    processes,
    runs,
    started,
    stretches,
)
from cluster.world import DEADLINE_S, LOOP, SYSTEM, VCS, Mount, Pod, World, eventually
from devicemount_testbed.api import MERGE_PATCH, pod_path

NODES = ("node1", "node2")
WAYS = ("deleted", "forced", "preempted")


@dataclass(frozen=True)
class Tenant:
    """A pod whose shadow pods are going to be taken: of an idle and of a held device."""

    way: str
    pod: Pod
    mounts: tuple[Mount, Mount]

    def shadow_paths(self) -> list[str]:
        namespace = self.pod.world.namespace
        names = [s["metadata"]["name"] for mount in self.mounts for s in mount.shadow_pods()]
        return [pod_path(namespace, name) for name in names]


@pytest.fixture
def priorities(world: World) -> Iterator[dict[str, str]]:
    """Two classes above all others': one only waits, the other preempts."""
    classes = {"patient": (1000, "Never"), "eager": (1000, "PreemptLowerPriority")}
    with priority_classes(world, **classes) as names:
        yield names


@contextmanager
def no_operator(world: World) -> Iterator[None]:
    """Let no operator run until the end of the block, whatever happens in it."""

    def scale(replicas: int) -> None:
        world.api.call("PATCH", OPERATOR, {"spec": {"replicas": replicas}}, kind=MERGE_PATCH)

    pods = f"/api/v1/namespaces/{SYSTEM}/pods?labelSelector=app.kubernetes.io/component%3Doperator"
    replicas = world.api.call("GET", OPERATOR)["spec"]["replicas"]
    scale(0)
    try:
        eventually(lambda: not world.api.call("GET", pods)["items"], what="no operator runs")
        yield
    finally:
        scale(replicas)
        world.api.until(
            OPERATOR,
            lambda found: bool(found) and found["status"].get("readyReplicas") == replicas,
            deadline_s=60,
            what="the operators are back",
        )


def tenants(world: World) -> list[Tenant]:
    """Start all targets, and give each an idle and a held device."""
    places = [(node, way, f"{way}-{node}") for node in NODES for way in WAYS]
    for node, _, name in places:
        post(world, name, prober(node))
    found = []
    for node, way, name in places:
        world.api.until(pod_path(world.namespace, name), runs, deadline_s=60, what="running")
        pod = Pod(world, name, node)
        world.pods[name] = pod
        mounts = (world.mount(f"{name}-idle", pod), world.mount(f"{name}-held", pod, resource=LOOP))
        found.append(Tenant(way, pod, mounts))
    for tenant in found:
        for mount in tenant.mounts:
            mount.ready()
            eventually(lambda m=mount: _is_guarded(m), what="its fence stands")
    return found


def _is_guarded(mount: Mount) -> bool:
    return all(pod["status"].get("phase") == "Running" for pod in mount.shadow_pods())


@contextmanager
def held(tenant: Tenant, waiters: ThreadPoolExecutor) -> Iterator[list[Future[Opened]]]:
    """Hold a device of the tenant by a descriptor, and by a mapping without one."""
    (path,) = tenant.mounts[1].files()
    container = tenant.pod.object()["status"]["containerStatuses"][0]["containerID"]
    with ExitStack() as stack:
        ends = []
        for verb, says in (("hold", "holding"), ("map", "mapped")):
            client = stack.enter_context(
                subprocess.Popen(
                    tenant.pod.command("/target", verb, path),
                    env=tenant.pod.world.testbed.kubectl_environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
            stack.callback(client.kill)
            assert client.stdout is not None
            assert client.stdout.readline().split() == [says, path]
            pid = _pid(f"/target\0{verb}\0{path}\0", container.rpartition("/")[2])
            pidfd = os.pidfd_open(pid)
            stack.callback(_ended, pidfd)
            ends.append(waiters.submit(_until_its_end, pidfd, tenant, path))
        yield ends


def _ended(pidfd: int) -> None:
    """Leave no holder behind, whatever has failed."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def _pid(command: str, container: str) -> int:
    for pid, said in processes(in_cgroup=container):
        if said == command:
            return pid
    raise AssertionError(f"{command!r} does not run")


def _until_its_end(pidfd: int, tenant: Tenant, path: str) -> Opened:
    begin_ns, poller = time.monotonic_ns(), select.poll()
    poller.register(pidfd, select.POLLIN)
    assert poller.poll(2 * DEADLINE_S * 1000), f"a holder in {tenant.pod.name} was not ended"
    return Opened(tenant.pod.node, path, tenant.pod.name, begin_ns, time.monotonic_ns(), "had open")


def logged(world: World, name: str, node: str) -> list[Opened]:
    """Read from a pod's own log when it could open which device."""
    log = world.testbed.kubectl("logs", "-n", world.namespace, name)
    return stretches(log.splitlines(), node=node, tenant=name)


def test_no_device_ever_has_two_tenants(world: World, priorities: dict[str, str]) -> None:
    never_two_tenants(world, priorities)


def never_two_tenants(world: World, priorities: dict[str, str]) -> None:
    """Lose reservations in each way, and compare who could open what until when."""
    patient, eager = priorities["patient"], priorities["eager"]
    limits = {VCS: 1, LOOP: 1}
    ours = tenants(world)
    for node in NODES:
        filled(world, node, patient)
    with ExitStack() as stack:
        waiters = stack.enter_context(ThreadPoolExecutor(2 * len(ours)))
        ends = [end for one in ours for end in stack.enter_context(held(one, waiters))]
        stack.enter_context(no_operator(world))
        rivals = {}
        for way in ("deleted", "forced"):
            for node in NODES:
                name = f"rival-{way}-{node}"
                rivals[name] = node
                post(world, name, prober(node, limits=limits, priorityClassName=patient))
        for tenant in ours:
            for path in tenant.shadow_paths() if tenant.way != "preempted" else ():
                world.api.delete(
                    path, {"gracePeriodSeconds": 0} if tenant.way == "forced" else None
                )
        for name in rivals:
            started(world, name)
        for node in NODES:
            name = f"rival-preempted-{node}"
            rivals[name] = node
            post(world, name, prober(node, limits=limits, priorityClassName=eager))
        for node in NODES:
            started(world, f"rival-preempted-{node}")
        before = [end.result() for end in ends]
    before += [one for t in ours for one in logged(world, t.pod.name, t.pod.node)]
    assert {(one.tenant, one.end_ns is None) for one in before} == {
        (tenant.pod.name, False) for tenant in ours
    }, "all were ended or revoked"
    after = [one for name, node in rivals.items() for one in logged(world, name, node)]
    assert len(after) == 2 * len(rivals)
    both = [(former, rival) for rival in after for former in before if former.overlaps(rival)]
    assert not both
