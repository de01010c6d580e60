# SPDX-License-Identifier: Apache-2.0
"""One control plane and one set of certificates for the session; an agent and a namespace a
test."""

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from component.operator import control_plane, fault_proxy, stub_agent
from component.operator.fault_proxy import FaultProxy
from component.operator.scene import Scene
from devicemount_operator.transport import Transport


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control_plane.ControlPlane]:
    with control_plane.running(tmp_path_factory.mktemp("control-plane")) as plane:
        yield plane


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_agent.make_certificates(tmp_path_factory.mktemp("agent-tls"))


@pytest.fixture
async def faults(
    scene: Scene,
    api_server: control_plane.ControlPlane,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> AsyncIterator[FaultProxy]:
    """What the operator of this test reaches the API server through."""
    async with fault_proxy.between(api_server, tmp_path) as proxy:
        monkeypatch.setenv("KUBECONFIG", str(proxy.kubeconfig))
        yield proxy


@pytest.fixture
async def scene(
    api_server: control_plane.ControlPlane,
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> AsyncIterator[Scene]:
    """An empty namespace, a node with a stub agent, no operator yet.

    No test may log a traceback.
    """
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    transport = await Transport.connect()
    monkeypatch.setenv("KUBECONFIG", str(api_server.operator_kubeconfig))
    async with stub_agent.serving(certificates) as agent:
        scene = Scene(transport, certificates=certificates, agent=agent, audit=api_server.audit_log)
        try:
            await scene.prepare()
            yield scene
        finally:
            await scene.close()
            await transport.close()
    for record in caplog.get_records("call"):
        assert record.exc_info is None, record.getMessage()
        assert "Traceback" not in record.getMessage(), record.getMessage()
