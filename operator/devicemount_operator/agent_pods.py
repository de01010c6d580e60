# SPDX-License-Identifier: Apache-2.0
"""Which agent answers for which node, and where: the addresses of the agents' pods."""

from collections.abc import Iterable

from devicemount_operator.agents import Agents
from devicemount_operator.decide.observation import NodeName
from devicemount_operator.reflector import Changed, Listed
from devicemount_operator.transport import JsonObject


class AgentPods:
    """Keeps the channels pointed at the newest agent pod of each node that has an address."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._pods: dict[str, JsonObject] = {}  # by UID

    async def take(self, event: Listed | Changed) -> None:
        """Take in what the watch says."""
        match event:
            case Listed(objects):
                self._pods = {packed.uid: packed.raw for packed in objects}
            case Changed(raw, deleted=True):
                self._pods.pop(raw["metadata"]["uid"], None)
            case Changed(raw):
                self._pods[raw["metadata"]["uid"]] = raw
        await self._point()

    async def _point(self) -> None:
        addresses = addresses_of(self._pods.values())
        for node in self._agents.nodes() - addresses.keys():
            await self._agents.left(node)
        for node, address in addresses.items():
            await self._agents.moved(node, address)


def addresses_of(pods: Iterable[JsonObject]) -> dict[NodeName, str]:
    """Return the address of each node's agent.

    The newest pod's that has one and is not on its way out.
    """
    living = [
        raw
        for raw in pods
        if raw["spec"].get("nodeName")
        and "deletionTimestamp" not in raw["metadata"]
        and (raw.get("status") or {}).get("phase") == "Running"
        and (raw.get("status") or {}).get("podIP")
    ]
    living.sort(key=lambda raw: str(raw["metadata"]["creationTimestamp"]))
    return {NodeName(raw["spec"]["nodeName"]): raw["status"]["podIP"] for raw in living}
