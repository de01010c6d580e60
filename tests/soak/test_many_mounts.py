# SPDX-License-Identifier: Apache-2.0
"""Ten thousand DeviceMounts on a real API server, with agents that grant at once: what a restart of
the operator costs, and what one more mount waits. MANY_MOUNTS says how many.

It needs no testbed, only its API server and etcd (`make binaries`).
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pytest

from component.operator import control_plane, stub_agent
from component.operator.conftest import api_server, certificates
from component.operator.control_plane import free_ports
from component.operator.probes import answer_of
from component.operator.processes import OperatorProcess, operator_process
from component.operator.scene import LOOP, SYSTEM, Scene, pod_body, running
from component.operator.stub_agent import StubAgent
from devicemount_operator.transport import JsonObject, Transport

__all__ = ["api_server", "certificates"]

MOUNTS = int(os.environ.get("MANY_MOUNTS", "10000"))
NODES = max(1, MOUNTS // 200)
AT_ONCE = min(1000, MOUNTS)
MORE = 50
REST_S, IDLE_S = 5.0, 30.0
PARALLEL = 32
SETTLED_S, RSS_KIB, ONE_MORE_S = 90.0, 250 << 10, 0.1
MOUNTED = 'devicemount_mounts{reason="Mounted"} '
log = logging.getLogger(__name__)


async def all_of(calls: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Make many calls, a bounded number at once."""
    left = iter(calls)

    async def work() -> None:
        for call in left:
            await call()

    await asyncio.gather(*(work() for _ in range(PARALLEL)))


@dataclass
class Crowd:
    """Many nodes with agents, and many pods with a DeviceMount each."""

    scene: Scene
    agents: dict[str, StubAgent] = field(default_factory=dict)
    port: int = 0

    async def node(self, number: int, agent: StubAgent, *, ip: str) -> None:
        name = f"node-{number}"
        self.agents[name] = agent
        meta = {"name": name, "labels": {"devicemount.io/enabled": "true"}}
        body = {"apiVersion": "v1", "kind": "Node", "metadata": meta}
        await self.scene.call("POST", "/api/v1/nodes", body)
        resources = {"cpu": "400", "memory": "800Gi", "pods": "20000", LOOP: "20000"}
        status = {"status": {"capacity": resources, "allocatable": resources}}
        await self.scene.call("PATCH", f"/api/v1/nodes/{name}/status", status)
        labels = {"app.kubernetes.io/component": "agent"}
        pod = pod_body(f"devicemount-agent-{number}", SYSTEM, ("agent",), labels=labels)
        pod["spec"]["nodeName"] = name
        path = f"/api/v1/namespaces/{SYSTEM}/pods"
        await self.scene.call("POST", path, pod)
        told = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}
        await self.scene.call("PATCH", f"{path}/{pod['metadata']['name']}/status", {"status": told})

    async def target(self, name: str, *, node: str, namespace: str) -> None:
        pod = pod_body(name, namespace, ("main",))
        pod["spec"]["nodeName"] = node
        path = f"/api/v1/namespaces/{namespace}/pods"
        await self.scene.call("POST", path, pod)
        status = {"status": running(("main",))}
        await self.scene.call("PATCH", f"{path}/{name}/status", status)

    async def mount(self, name: str, *, namespace: str) -> JsonObject:
        body = self.scene.mount_body(name, pod=name)
        body["metadata"]["namespace"] = namespace
        path = f"/apis/devicemount.io/v1alpha1/namespaces/{namespace}/devicemounts"
        return await self.scene.call("POST", path, body)

    async def namespace(self, name: str) -> None:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        await self.scene.call("POST", "/api/v1/namespaces", body)


@pytest.fixture
async def crowd(
    api_server: control_plane.ControlPlane,
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Crowd]:
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    transport = await Transport.connect()
    monkeypatch.setenv("KUBECONFIG", str(api_server.operator_kubeconfig))
    async with AsyncExitStack() as all_of_it:
        (port,) = free_ports(1)
        agents = [
            await all_of_it.enter_async_context(
                stub_agent.serving(certificates, host=f"127.0.1.{number + 1}", port=port)
            )
            for number in range(NODES)
        ]
        scene = Scene(
            transport, certificates=certificates, agent=agents[0], audit=api_server.audit_log
        )
        await scene.prepare()
        await scene.no_agent_pod()
        crowd = Crowd(scene)
        for number, agent in enumerate(agents):
            await crowd.node(number, agent, ip=f"127.0.1.{number + 1}")
        yield crowd
        await transport.close()


@asynccontextmanager
async def operator(crowd: Crowd, directory: Path) -> AsyncIterator[OperatorProcess]:
    (crowd.port,) = free_ports(1)
    usual = {"agent_poll_s": 1.0, "agent_check_s": 10.0, "lease_retry_s": 2.0}
    started = operator_process(crowd.scene, directory, health_port=crowd.port, **usual)
    async with started as process:
        yield process


async def figures(crowd: Crowd) -> dict[str, float]:
    said = (await answer_of(crowd.port, "/metrics")).text
    lines = [line.rpartition(" ") for line in said.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


async def settles(crowd: Crowd, mounts: int, *, within_s: float, passes: int) -> float:
    """Return how long it takes until so many are mounted and nothing is left to be done."""
    started = time.monotonic()

    async def is_settled() -> bool:
        now = await figures(crowd)
        return (
            now.get('devicemount_mounts{reason="Mounted"}') == mounts
            and now["devicemount_queue_depth"] == 0
            and now["devicemount_reconcile_seconds_count"] >= passes
        )

    await crowd.scene.eventually(is_settled, within_s=within_s)
    return time.monotonic() - started


def rss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def idles(pid: int) -> float:
    """Return which part of a core it takes when nothing happens: once kopf has handed on, which is
    for nothing, all that it lists at its start."""
    before, now = float("inf"), await spends(pid, REST_S)
    while now < before:
        before, now = now, await spends(pid, REST_S)
    return await spends(pid, IDLE_S)


async def spends(pid: int, seconds: float) -> float:
    began, before = time.monotonic(), processor_s(pid)
    await asyncio.sleep(seconds)
    return (processor_s(pid) - before) / (time.monotonic() - began)


async def one_more(crowd: Crowd, number: int) -> float:
    """Return how long it takes from the object's creation until an agent is asked."""
    name, node = f"more-{number}", f"node-{number % NODES}"
    await crowd.target(name, node=node, namespace=crowd.scene.namespace)
    agent = crowd.agents[node]
    asked = len(agent.applies)
    started = time.monotonic()
    await crowd.mount(name, namespace=crowd.scene.namespace)

    async def is_asked() -> bool:
        return len(agent.applies) > asked

    await crowd.scene.eventually(is_asked, every_s=0.001)
    return time.monotonic() - started


async def test_ten_thousand_mounts(crowd: Crowd, tmp_path: Path) -> None:
    scene, home = crowd.scene, crowd.scene.namespace
    names = [f"pod-{n}" for n in range(MOUNTS)]
    node_of = {name: f"node-{n % NODES}" for n, name in enumerate(names)}
    await all_of(
        lambda name=name: crowd.target(name, node=node_of[name], namespace=home)  # type: ignore[misc]
        for name in names
    )
    async with operator(crowd, tmp_path) as process:
        began = time.monotonic()
        first = names[:AT_ONCE]
        await all_of(lambda name=name: crowd.mount(name, namespace=home) for name in first)  # type: ignore[misc]
        await crowd.namespace("other")
        await crowd.target("only", node="node-0", namespace="other")
        asked = time.monotonic()
        await crowd.mount("only", namespace="other")
        path = "/apis/devicemount.io/v1alpha1/namespaces/other/devicemounts/only"

        async def is_ready() -> bool:
            found = await scene.call("GET", path)
            return (found.get("status") or {}).get("ready") == "1/1"

        await scene.eventually(is_ready, within_s=300)
        other_s = time.monotonic() - asked
        await settles(crowd, AT_ONCE + 1, within_s=300, passes=0)
        all_s = time.monotonic() - began
        log.warning(
            "%d at once: %.1f s; another namespace's only one: %.2f s", AT_ONCE, all_s, other_s
        )
        rest = names[AT_ONCE:]
        await all_of(lambda name=name: crowd.mount(name, namespace=home) for name in rest)  # type: ignore[misc]
        await settles(crowd, MOUNTS + 1, within_s=1200, passes=0)
        log.warning(
            "%d mounted: %.0f s, RSS %d KiB", MOUNTS, time.monotonic() - began, rss_kib(process.pid)
        )
    counting = ExitStack()
    writes = counting.enter_context(scene.counted())
    async with operator(crowd, tmp_path) as process:
        await scene.eventually(lambda: leads(crowd), within_s=30)
        settled_s = await settles(crowd, MOUNTS + 1, within_s=600, passes=MOUNTS + 1)
        rss, spent = rss_kib(process.pid), processor_s(process.pid)
        idle = await idles(process.pid)
        log.warning(
            "restarted: settled %.1f s, processor %.1f s, RSS %d KiB, idle %.1f %% of a core",
            settled_s,
            spent,
            rss,
            100 * idle,
        )
        counting.close()
        took = sorted([await one_more(crowd, number) for number in range(MORE)])
        log.warning("one more: p50 %.0f ms, p95 %.0f ms", 1e3 * median(took), 1e3 * took[-3])
        log.warning("RSS %d KiB at the end", rss_kib(process.pid))
    assert writes == []
    assert settled_s < SETTLED_S
    assert rss < RSS_KIB
    assert median(took) < ONE_MORE_S


async def leads(crowd: Crowd) -> bool:
    return (await figures(crowd)).get("devicemount_leader") == 1
