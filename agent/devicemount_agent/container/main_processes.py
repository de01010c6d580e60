# SPDX-License-Identifier: Apache-2.0
"""The processes with which a pod's containers begin and end, as the runtime names them.

Not "pid 1": containers of a pod may share one pid namespace.
"""

import asyncio
from typing import Protocol

from devicemount_agent.container.cri import ContainerFacts
from devicemount_agent.container.first_process import first_process
from devicemount_agent.model import ContainerID, PodUID


class Runtime(Protocol):
    """What is asked of the container runtime."""

    async def of_pod(self, pod_uid: PodUID) -> tuple[ContainerID, ...]: ...

    async def container(self, container_id: ContainerID) -> ContainerFacts | None: ...


async def main_processes(runtime: Runtime, pod_uid: PodUID) -> frozenset[int]:
    """Return the pids, on the node, of the first processes of a pod's running containers.

    Raises NodeUnavailable.
    """
    found = [await runtime.container(one) for one in await runtime.of_pod(pod_uid)]
    pids = [
        facts.pid or await asyncio.to_thread(first_process, facts.id, pod_uid)
        for facts in found
        if facts is not None
    ]
    return frozenset(pid for pid in pids if pid)
