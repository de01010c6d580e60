# SPDX-License-Identifier: Apache-2.0
"""What each agent took for each step of a mount: its List, asked with the operator's certificate.

Pod addresses are reached only from the testbed's own network, so a second process asks there: this
module's `main`. It reads "ADDRESS MOUNT_UID" lines and answers each with a JSON object of
milliseconds. It is idle except between a sample's last moment and its removal.
"""

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import grpc
import grpc.aio

from devicemount_agent_api.identity import Identity
from devicemount_agent_api.tls import agent_channel
from devicemount_agent_api.v1.agent_pb2 import ListRequest
from devicemount_agent_api.v1.agent_pb2_grpc import AgentStub
from devicemount_testbed.api import Api
from devicemount_testbed.cluster import Testbed

SYSTEM = "/api/v1/namespaces/devicemount-system"
AGENTS = f"{SYSTEM}/pods?labelSelector=app.kubernetes.io/component%3Dagent"
CERTIFICATE = f"{SYSTEM}/secrets/devicemount-operator-tls"
PORT = 9443
CALL_TIMEOUT_S = 5.0
US_PER_MS = 1000


@dataclass(frozen=True, slots=True)
class AgentSteps:
    """A connection to the process that asks the agents."""

    api: Api
    questions: IO[str]
    answers: IO[str]

    def of(self, node: str, mount_uid: str) -> dict[str, float]:
        """Return milliseconds after the agent got Apply, by step; nothing if it does not know."""
        agents = self.api.call("GET", AGENTS)["items"]
        here = [a["status"].get("podIP") for a in agents if a["spec"].get("nodeName") == node]
        if len(here) != 1 or not here[0]:  # it is being replaced
            return {}
        print(f"{here[0]}:{PORT} {mount_uid}", file=self.questions, flush=True)
        steps: dict[str, float] = json.loads(self.answers.readline())
        return steps


@contextmanager
def agent_steps(testbed: Testbed, api: Api) -> Iterator[AgentSteps]:
    """Start the process, with the operator's certificate; end it in the end."""
    with TemporaryDirectory() as directory:
        for name, content in api.call("GET", CERTIFICATE)["data"].items():
            (Path(directory) / name).write_bytes(base64.b64decode(content))
        argv = testbed.in_control_netns([sys.executable, "-m", __spec__.name, directory])
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as asker:
            assert asker.stdin
            assert asker.stdout
            yield AgentSteps(api, asker.stdin, asker.stdout)


async def main(directory: Path) -> None:
    """Answer questions until there are none; an agent that does not answer knows no steps."""
    channels: dict[str, grpc.aio.Channel] = {}
    while question := await asyncio.to_thread(sys.stdin.readline):
        address, mount_uid = question.split()
        if address not in channels:
            channels[address] = agent_channel(address, Identity.from_directory(directory))
        steps: dict[str, float] = {}
        try:
            listed = await AgentStub(channels[address]).List(ListRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            print(f"agent at {address}: {error}", file=sys.stderr)
        else:
            for mount in listed.mounts:
                if mount.key.mount_uid == mount_uid:
                    steps = {name: us / US_PER_MS for name, us in mount.timings_us.items()}
        print(json.dumps(steps), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
