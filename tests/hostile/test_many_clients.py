# SPDX-License-Identifier: Apache-2.0
"""Many clients at once grant and revoke on one container: each gets what it asked for, none undoes
another's, and in the end the container is as it was.
"""

import asyncio

from component.agent.conftest import RESOURCE, Node, Shadow, Target
from devicemount_agent.graft import graft
from devicemount_agent_api.tls import agent_channel
from devicemount_agent_api.v1 import agent_pb2 as pb
from devicemount_agent_api.v1 import agent_pb2_grpc

from .conftest import count

CLIENTS = 16
MOUNTS = count("CLIENT_MOUNTS", 1)  # of each client, one after the other


class Client:
    """One DeviceMount of its own, with its own device of the node, over its own channel."""

    def __init__(self, node: Node, target: Target, number: int) -> None:
        self._node = node
        self._target = Target(target.pod, target.box, f"{number:08x}-aaaa-4aaa-8aaa-111111111111")
        self._device = f"tty{number + 40}"
        self._channel = agent_channel(
            node.settings.listen, node.identity_of("devicemount-operator")
        )
        self._stub = agent_pb2_grpc.AgentStub(self._channel)

    async def run(self) -> None:
        for ordinal in range(MOUNTS):
            shadow = self._reserved(ordinal)
            request = self._node.apply_request(self._target, shadow)
            state = await self._stub.Apply(request, timeout=30)  # type: ignore[misc]
            assert state.phase == pb.GRANTED, (self._device, ordinal)
            assert self._is_permitted(), (self._device, ordinal)
            await self._removed()
            assert not self._is_permitted(), (self._device, ordinal)
            assert not (self._target.box.root / "dev" / self._device).exists()
            self._node.kubelet.forget(shadow.pod)
        await self._channel.close(None)

    def _reserved(self, ordinal: int) -> Shadow:
        shadow = self._node.shadow(self._target, ordinal)
        path = f"/dev/{self._device}"
        self._node.kubelet.choose(shadow.pod, RESOURCE, {self._device: [(path, path)]})
        return shadow

    async def _removed(self) -> None:
        self._node.revision += 1
        request = pb.RemoveRequest(
            key=self._target.key,
            policy=pb.WAIT,
            epoch=self._node.order(),
            revision=self._node.revision,
        )
        state = await self._stub.Remove(request, timeout=30)  # type: ignore[misc]
        assert state.phase == pb.REMOVED, (self._device, str(state))

    def _is_permitted(self) -> bool:
        """By the kernel's list: nobody opens terminals here."""
        minors = {number.minor for number in graft.allowed(self._target.box) if number.major == 4}
        return int(self._device.removeprefix("tty")) in minors


async def test_sixteen_clients_on_one_container(node: Node) -> None:
    target = node.target()
    before = graft.allowed(target.box)
    async with node.agent():
        async with asyncio.TaskGroup() as tasks:
            for number in range(CLIENTS):
                tasks.create_task(Client(node, target, number).run())
        assert await node.states() == []
    assert graft.allowed(target.box) == before
    assert target.box.inside.process.poll() is None
