# SPDX-License-Identifier: Apache-2.0
"""Containers of the Docker engine are found and grafted by the same code as all others.

cri-dockerd, which a kubelet needs in between, cannot be had here: its answers have no pid, so the
process is found by its cgroup.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicemount_agent.container.find import Container, find
from devicemount_agent.errors import TargetNotRunning
from devicemount_agent.graft import graft, shape, verify
from devicemount_agent.model import DeviceNode

from .docker_engine import Engine, engine, new_uid, target

READ = "[ -c /dev/vcsa ] && true < /dev/vcsa"


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine(tmp_path_factory.mktemp("docker")) as running:
        yield running


@pytest.fixture
def found(docker: Engine) -> Iterator[Container]:
    uid = new_uid()
    docker.run(uid, "/bin/busybox", "sleep", "600")
    container = asyncio.run(find(docker, target(), pod_uid=uid, hint=None))
    yield container
    container.close()


def test_the_process_is_the_one_that_docker_names(docker: Engine, found: Container) -> None:
    docker.sh(found.id, "sleep 600 & true")  # younger, and in the same cgroup
    assert found.init_pid == docker.pid(found.id)
    assert found.cgroup.path.name == found.id


def test_a_device_opens_from_the_grant_to_the_revoke(
    docker: Engine,
    found: Container,
    vcsa: DeviceNode,
    hold: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        shape, "NODE_PROCESS", Path("/proc/self")
    )  # this machine's init is not ours
    graft.supported(found)
    earlier = graft.earlier(found, [vcsa.number])
    assert not docker.sh(found.id, READ)

    graft.permit(found, {vcsa.number: vcsa.access}, earlier=earlier)
    made = graft.place(found, [vcsa])
    verify.verify(found, [vcsa], hold=hold)
    assert docker.sh(found.id, READ)

    graft.permit(found, {}, earlier=earlier)
    assert docker.sh(found.id, "[ -c /dev/vcsa ]")
    assert not docker.sh(found.id, READ)
    graft.displace(found, [vcsa], made)
    assert docker.sh(found.id, "[ ! -e /dev/vcsa ]")


def test_a_container_that_ended_is_not_found(docker: Engine) -> None:
    uid = new_uid()
    container_id = docker.run(uid, "/bin/busybox", "sleep", "600")
    docker.docker("kill", container_id)
    docker.docker("wait", container_id)
    with pytest.raises(TargetNotRunning):
        asyncio.run(find(docker, target(), pod_uid=uid, hint=container_id))
