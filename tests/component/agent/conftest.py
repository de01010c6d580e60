# SPDX-License-Identifier: Apache-2.0
"""A whole agent over TLS, a kubelet and a runtime that obey, real containers on cgroup v1."""

import asyncio
import os
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from devicemount_agent.__main__ import Agent
from devicemount_agent.certificates import Certificates
from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.model import PodUID
from devicemount_agent.settings import Settings
from devicemount_agent_api.identity import Identity, utc_now
from devicemount_agent_api.identity_process import answer
from devicemount_agent_api.tls import AGENT_NAME, agent_channel
from devicemount_agent_api.v1 import agent_pb2 as pb
from devicemount_agent_api.v1 import agent_pb2_grpc
from node.agent.containers import HIERARCHIES, Actor, Box, Lab, lab

from .fakes import FakeKubelet, FakePod, FakeRuntime, serve_kubelet, serve_runtime
from .pki import Authority

REPOSITORY = Path(__file__).resolve().parents[3]
RESOURCE = "example.com/vcs"
MOUNT_UID = "11111111-aaaa-4aaa-8aaa-111111111111"
NAMESPACE = "team-a"
DEADLINE_S = 10.0  # never waited for where all is well; two halves of the layer run at once


@pytest.fixture(scope="session")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("hold") / "hold"
    source = REPOSITORY / "agent/hold/hold.c"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(binary), str(source)], check=True)
    return binary


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority.create("devicemount")


@pytest.fixture
def v1(tmp_path: Path) -> Iterator[Lab]:
    if os.geteuid() != 0 or not HIERARCHIES[CgroupVersion.V1].is_dir():
        pytest.skip("needs root and a cgroup v1 hierarchy for devices")
    with lab(CgroupVersion.V1, tmp_path) as made:
        yield made


@pytest.fixture
def hierarchy(v1: Lab) -> Lab:
    """The cgroups in which the node's containers are."""
    return v1


@dataclass
class Shadow:
    """A shadow pod as the kubelet has it."""

    pod: FakePod
    resources: dict[str, int]

    def message(self) -> pb.ShadowPod:
        return pb.ShadowPod(name=self.pod.name, uid=self.pod.uid, resources=self.resources)


@dataclass
class Target:
    """A running target pod: what the runtime says of it, and the process in it."""

    pod: FakePod
    box: Box
    mount_uid: str = MOUNT_UID

    @property
    def key(self) -> pb.MountKey:
        return pb.MountKey(mount_uid=self.mount_uid, pod_uid=self.pod.uid)


@dataclass
class Node:
    """One node: kubelet, runtime, agent, and the operator's client."""

    directory: Path
    settings: Settings
    authority: Authority
    lab: Lab
    kubelet: FakeKubelet
    runtime: FakeRuntime = field(default_factory=FakeRuntime)
    revision: int = 0
    stub: "agent_pb2_grpc.AgentAsyncStub" = None  # type: ignore[assignment]

    # ---- the node's side

    def target(
        self,
        name: str = "notebook-0",
        *,
        own_users: bool = False,
        pass_fds: tuple[int, ...] = (),
    ) -> Target:
        box = self.lab.container(own_users=own_users, pass_fds=pass_fds)
        pod = FakePod(box.pod_uid, NAMESPACE, name)
        self.runtime.add(pod, "notebook", container_id=box.id, pid=box.init_pid)
        return Target(pod, box)

    def beside(
        self,
        target: Target,
        *,
        pass_fds: tuple[int, ...] = (),
        permitted: Sequence[tuple[str, int, int]] = (),
    ) -> Actor:
        """Another container of the target pod, with devices by the runtime's spec."""
        box = self.lab.container(pod_uid=PodUID(target.pod.uid), pass_fds=pass_fds)
        self.runtime.add(target.pod, "sidecar", container_id=box.id, pid=box.init_pid)
        self.runtime.containers[box.id].permitted = list(permitted)
        assert isinstance(box.inside, Actor)
        return box.inside

    def restarted(self, target: Target) -> Target:
        """The target's container ends and another one of the same pod runs."""
        self.runtime.containers[target.box.id].is_running = False
        target.box.inside.process.kill()
        target.box.inside.process.wait()
        box = self.lab.container(pod_uid=PodUID(target.pod.uid))
        self.runtime.add(target.pod, "notebook", container_id=box.id, pid=box.init_pid)
        return Target(target.pod, box, target.mount_uid)

    def shadow(self, target: Target, ordinal: int = 0, **resources: int) -> Shadow:
        """A shadow pod that was posted; the kubelet has not chosen yet."""
        name = f"dm-{target.mount_uid[:8]}-{target.pod.uid[:8]}-{ordinal}"
        pod = FakePod(str(uuid.uuid4()), NAMESPACE, name)
        return Shadow(pod, dict(resources) or {RESOURCE: 1})

    def reserved(self, target: Target, *devices: str, ordinal: int = 0) -> Shadow:
        """A shadow pod to which the kubelet gave these devices of /dev."""
        shadow = self.shadow(target, ordinal, **{RESOURCE: len(devices)})
        self.choose(shadow, *devices)
        return shadow

    def choose(self, shadow: Shadow, *devices: str) -> None:
        nodes = {device: [(f"/dev/{device}", f"/dev/{device}")] for device in devices}
        self.kubelet.choose(shadow.pod, RESOURCE, nodes)

    # ---- the operator's side

    def order(self) -> pb.Epoch:
        return pb.Epoch(lease_created_ns=1, lease_uid="lease-uid-1", transitions=0)

    def apply_request(self, target: Target, *shadows: Shadow) -> pb.ApplyRequest:
        self.revision += 1
        return pb.ApplyRequest(
            key=target.key,
            mount_name="notebook-gpu",
            target=pb.Target(
                namespace=NAMESPACE,
                pod_name=target.pod.name,
                container="notebook",
                container_id=target.box.id,
            ),
            shadow_pods=[shadow.message() for shadow in shadows],
            epoch=self.order(),
            revision=self.revision,
        )

    async def apply(
        self, target: Target, *shadows: Shadow, timeout_s: float = DEADLINE_S
    ) -> pb.MountState:
        return await self.stub.Apply(self.apply_request(target, *shadows), timeout=timeout_s)

    async def remove(
        self,
        target: Target,
        *shadows: Shadow,
        policy: "pb.Policy.ValueType" = pb.WAIT,
        grace_s: int = 0,
        include_main: bool = False,
        timeout_s: float = 10,
    ) -> pb.MountState:
        self.revision += 1
        request = pb.RemoveRequest(
            key=target.key,
            shadow_uids=[shadow.pod.uid for shadow in shadows],
            policy=policy,
            grace_seconds=grace_s,
            include_main_process=include_main,
            epoch=self.order(),
            revision=self.revision,
        )
        return await self.stub.Remove(request, timeout=timeout_s)

    async def states(self) -> list[pb.MountState]:
        return list((await self.stub.List(pb.ListRequest(), timeout=DEADLINE_S)).mounts)

    # ---- the agent

    def certificates(self) -> Certificates:
        """As an agent has them, but for the child process, which takes a while to start."""
        return Certificates(self.settings.tls_directory, name=AGENT_NAME, ask=answered_here)

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        """Run an agent until the end of the block; grants outlive it."""
        stopped = asyncio.Event()
        agent = Agent(self.settings, self.certificates())
        running = asyncio.create_task(agent.run(stopped))
        channel = agent_channel(self.settings.listen, self.identity_of("devicemount-operator"))
        self.stub = agent_pb2_grpc.AgentStub(channel)  # type: ignore[assignment]
        try:
            async with asyncio.timeout(DEADLINE_S):
                ready = asyncio.create_task(channel.channel_ready())
                await asyncio.wait((ready, running), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            yield agent
        finally:
            await channel.close(None)
            stopped.set()
            await running
            await agent.close()

    def identity_of(self, name: str) -> Identity:
        return Identity.from_directory(self.authority_of(name))

    def authority_of(self, name: str) -> Path:
        directory = self.directory / f"tls-{name}"
        return directory if directory.exists() else self.authority.issue(name, directory)


def answered_here(question: bytes) -> bytes:
    return answer(question, now=utc_now())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def node(
    tmp_path: Path,
    authority: Authority,
    hold: Path,
    hierarchy: Lab,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Node]:
    # The machine's first process may be out of sight where tests run; ours is the node's here.
    monkeypatch.setattr("devicemount_agent.graft.shape.NODE_PROCESS", Path("/proc/self"))
    plugins = tmp_path / "kubelet/device-plugins"  # nothing of the kubelet's is ever mounted
    for directory in (plugins, tmp_path / "kubelet/pod-resources", tmp_path / "runtime"):
        directory.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as registration:  # its file is what counts, and stays
        registration.bind(str(plugins / "kubelet.sock"))
    made = Node(
        directory=tmp_path,
        settings=Settings(
            listen=f"127.0.0.1:{free_port()}",
            health_port=free_port(),
            tls_directory=authority.issue("devicemount-agent", tmp_path / "tls"),
            journal_directory=tmp_path / "run",
            files_directory=tmp_path / "files",
            profiles_directory=tmp_path / "profiles",
            node_root=Path("/"),
            cri_socket=tmp_path / "runtime/cri.sock",
            device_plugins_directory=plugins,
            pod_resources_socket=tmp_path / "kubelet/pod-resources/kubelet.sock",
            hold=hold,
        ),
        authority=authority,
        lab=hierarchy,
        kubelet=FakeKubelet(plugins),
    )
    runtime = await serve_runtime(made.runtime, made.settings.cri_socket)
    kubelet = await serve_kubelet(made.kubelet, made.settings.pod_resources_socket)
    yield made
    await runtime.stop(None)
    await kubelet.stop(None)
