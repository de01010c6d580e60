# SPDX-License-Identifier: Apache-2.0
"""The operator's own certificates and those that others mount: made, renewed, bad ones named."""

import base64
import dataclasses
import datetime
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509

from component.operator import stub_agent
from component.operator.control_plane import free_ports
from component.operator.mounted import Directories
from component.operator.scene import SYSTEM, Scene
from devicemount_agent_api.identity import is_signed_by, utc_now
from devicemount_operator.authority import LEAF_LIFE, make_authority
from devicemount_operator.transport import JsonObject

SECRETS = f"/api/v1/namespaces/{SYSTEM}/secrets"
OPERATOR, AGENTS = "devicemount-operator-tls", "devicemount-agent-tls"
HOUR = datetime.timedelta(hours=1)


class Cluster:
    """The default: both Secrets are the operator's, and a test that is the kubelet of one agent."""

    def __init__(self, scene: Scene, directory: Path) -> None:
        self.scene = scene
        self.mounted = directory / "agent"
        (port,) = free_ports(1)
        scene.settings = dataclasses.replace(
            scene.settings,
            tls_directory=directory / "nothing mounted",
            certificates_s=0.1,
            agent_port=port,
        )

    async def secret(self, name: str) -> dict[str, bytes]:
        """Wait until the Secret exists; return its content."""
        found = await self.scene.eventually(lambda: self.scene.get(f"{SECRETS}/{name}"))
        return {key: base64.b64decode(value) for key, value in found["data"].items()}

    async def trusted(self, name: str) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates((await self.secret(name))["ca.crt"])

    async def delete(self, name: str) -> None:
        await self.scene.delete(f"{SECRETS}/{name}")

    async def deliver(self) -> None:
        """Do as the kubelet: a directory of this version, then one link to it."""
        data = await self.secret(AGENTS)
        self.mounted.mkdir(exist_ok=True)
        version = self.mounted / f"..{len(list(self.mounted.iterdir()))}"
        version.mkdir()
        for name, content in data.items():
            (version / name).write_bytes(content)
        draft = self.mounted / "..draft"
        draft.symlink_to(version.name)
        os.replace(draft, self.mounted / "..data")  # noqa: PTH105

    async def is_changing(self) -> bool:
        return len(await self.trusted(AGENTS)) > 1

    async def is_settled(self) -> bool:
        """Tell whether one authority is left, by which everything is signed."""
        trusted = await self.trusted(AGENTS)
        leaf = x509.load_pem_x509_certificate((await self.secret(OPERATOR))["tls.crt"])
        return (
            len(trusted) == 1
            and trusted == await self.trusted(OPERATOR)
            and is_signed_by(leaf, trusted[0])
        )

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[stub_agent.StubAgent]:
        await self.deliver()
        port = self.scene.settings.agent_port
        async with stub_agent.serving(self.mounted.parent, port=port) as one:
            yield one

    async def mounts(self, name: str) -> None:
        await mounts(self.scene, name)


@pytest.fixture
async def cluster(scene: Scene, tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(scene, tmp_path)
    await scene.running_pod()
    yield made
    for name in (OPERATOR, AGENTS):
        await made.delete(name)


async def test_both_secrets_are_made_and_the_agents_holds_nothing_of_the_operators(
    cluster: Cluster,
) -> None:
    async with cluster.scene.operator(), cluster.agent():
        operators, agents = await cluster.secret(OPERATOR), await cluster.secret(AGENTS)
        assert set(operators) == {"tls.crt", "tls.key", "ca.crt", "ca.key"}
        assert set(agents) == {"tls.crt", "tls.key", "ca.crt"}
        assert operators["ca.key"] not in agents.values()
        assert operators["tls.key"] not in agents.values()
        await cluster.mounts("dm")
    before = await cluster.secret(OPERATOR)
    async with cluster.scene.operator(), cluster.agent():
        await cluster.mounts("again")
        assert await cluster.secret(OPERATOR) == before


async def test_a_new_authority_takes_over_without_a_failed_mount(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster.scene.operator(), cluster.agent():
        (former,) = await cluster.trusted(OPERATOR)
        await cluster.mounts("before")

        await cluster.delete(OPERATOR)
        await cluster.scene.eventually(cluster.is_changing)
        leaf = x509.load_pem_x509_certificate((await cluster.secret(OPERATOR))["tls.crt"])
        assert is_signed_by(leaf, former)  # the agent knows no other yet
        await cluster.mounts("published")

        await cluster.deliver()
        await cluster.scene.eventually(cluster.is_settled)
        assert await cluster.trusted(OPERATOR) != [former]
        await cluster.mounts("before-the-agent-has-read-that-the-former-is-gone")

        await cluster.deliver()
        await cluster.mounts("after")
        assert "does not answer" not in caplog.text
        assert "AgentUnavailable" not in caplog.text


async def test_a_successor_goes_on_with_a_change(cluster: Cluster) -> None:
    async with cluster.scene.operator():
        await cluster.secret(AGENTS)
    async with cluster.agent():
        async with cluster.scene.operator():
            await cluster.mounts("before")
            await cluster.delete(OPERATOR)
            await cluster.scene.eventually(cluster.is_changing)
        async with cluster.scene.operator():
            await cluster.mounts("published")
            await cluster.deliver()
            await cluster.scene.eventually(cluster.is_settled)
            await cluster.mounts("after")


async def test_a_call_in_flight_is_not_cut_by_a_change(cluster: Cluster) -> None:
    async with cluster.scene.operator(), cluster.agent() as agent:
        await cluster.secret(AGENTS)
        agent.gate.clear()
        await cluster.scene.mount()

        async def is_asked() -> bool:
            return bool(agent.applies)

        await cluster.scene.eventually(is_asked)
        await cluster.delete(OPERATOR)
        await cluster.scene.eventually(cluster.is_changing)
        await cluster.deliver()
        await cluster.scene.eventually(cluster.is_settled)
        agent.gate.set()
        await cluster.scene.becomes("Mounted")
        assert len(agent.applies) == 1


async def test_an_operator_secret_lost_while_nobody_led_is_healed_by_the_kubelet(
    cluster: Cluster,
) -> None:
    async with cluster.scene.operator():
        await cluster.secret(AGENTS)
    async with cluster.agent():
        await cluster.delete(OPERATOR)
        async with cluster.scene.operator():
            await cluster.scene.mount()
            message = await unavailable(cluster.scene)
            assert "refuses the operator's certificate, which is signed by CN=" in message
            assert "if it is new, wait until the agent has read its own" in message
            await cluster.deliver()
            await cluster.scene.becomes("Mounted")


async def test_a_deleted_agents_secret_is_made_again_by_the_same_authority(
    cluster: Cluster,
) -> None:
    async with cluster.scene.operator(), cluster.agent():
        before, trusted = await cluster.secret(AGENTS), await cluster.trusted(AGENTS)
        await cluster.delete(AGENTS)
        after = await cluster.secret(AGENTS)
        assert after["tls.crt"] != before["tls.crt"]
        assert await cluster.trusted(AGENTS) == trusted
        await cluster.mounts("before-the-kubelet")
        await cluster.deliver()
        await cluster.mounts("after")


async def test_a_secret_of_somebody_else_is_not_touched(cluster: Cluster) -> None:
    scene, data = cluster.scene, {"tls.crt": "", "tls.key": ""}
    body: JsonObject = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": AGENTS, "namespace": SYSTEM},
        "type": "kubernetes.io/tls",
        "data": data,
    }
    await scene.call("POST", SECRETS, body)
    async with scene.operator():
        await scene.mount()
        message = await unavailable(scene)
        assert f"Secret {AGENTS} in {SYSTEM} was not made by this operator: delete it" in message
        assert (await scene.call("GET", f"{SECRETS}/{AGENTS}"))["data"] == data
        await cluster.delete(AGENTS)
        async with cluster.agent():
            await scene.becomes("Mounted")


# Certificates that others mount


class Files(Directories):
    """Both sides' directories, and an agent that reads the one."""

    def __init__(self, scene: Scene, directory: Path) -> None:
        super().__init__(directory)
        self.scene = scene
        (port,) = free_ports(1)
        scene.settings = dataclasses.replace(
            scene.settings,
            tls_directory=directory / "operator",
            certificates_s=0.1,
            agent_port=port,
        )

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[stub_agent.StubAgent]:
        port = self.scene.settings.agent_port
        async with stub_agent.serving(self.directory, port=port) as one:
            yield one

    async def mounts(self, name: str) -> None:
        await mounts(self.scene, name)


@pytest.fixture
async def files(scene: Scene, tmp_path: Path) -> Files:
    await scene.running_pod()
    return Files(scene, tmp_path)


async def test_mounted_certificates_win_and_no_secret_is_made(files: Files) -> None:
    async with files.scene.operator(), files.agent():
        await files.mounts("dm")
        for name in (OPERATOR, AGENTS):
            assert await files.scene.get(f"{SECRETS}/{name}") is None


@pytest.mark.parametrize("order", [("operator", "agent"), ("agent", "operator")], ids=str)
async def test_an_authority_replaced_at_once_reaches_both_sides_one_after_the_other(
    files: Files, order: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async with files.scene.operator(), files.agent():
        await files.mounts("before")
        new = make_authority(now=utc_now())
        for side in order:
            files.write(side, signed_by=new)
            await files.mounts(f"after-{side}")
        assert "AgentUnavailable" not in caplog.text
        assert "does not answer" not in caplog.text


async def test_a_bad_certificate_is_named_and_healed_without_a_restart(files: Files) -> None:
    files.write("agent", now=utc_now() - LEAF_LIFE - HOUR)
    async with files.scene.operator(), files.agent():
        await files.scene.mount()
        message = await unavailable(files.scene)
        assert "the certificate of the agent on node node1 expired at 20" in message
        files.write("agent")
        await files.scene.becomes("Mounted")


async def test_a_missing_certificate_of_the_operator_is_named_and_healed(files: Files) -> None:
    (files.directory / "operator" / "tls.key").unlink()
    async with files.scene.operator(), files.agent():
        await files.scene.mount()
        assert "/operator/tls.key: No such file or directory" in await unavailable(files.scene)
        files.write("operator")
        await files.scene.becomes("Mounted")


async def mounts(scene: Scene, name: str) -> None:
    """Mount and unmount once more."""
    await scene.mount(name)
    await scene.becomes("Mounted", name)
    await scene.unmount(name)
    await scene.gone(scene.mount_path(name))


async def unavailable(scene: Scene) -> str:
    """Wait until the mount says that the agent is not available; return why."""

    async def said() -> str:
        mount = await scene.get_mount()
        conditions = ((mount or {}).get("status") or {}).get("conditions") or ()
        ready = next((c for c in conditions if c["type"] == "Ready"), {})
        return str(ready["message"]) if ready.get("reason") == "AgentUnavailable" else ""

    return str(await scene.eventually(said))
