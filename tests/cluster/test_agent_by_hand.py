# SPDX-License-Identifier: Apache-2.0
"""The agents alone: a client with the operator's certificate, and a hand-made shadow pod."""

import base64
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from google.protobuf import json_format

from cluster.world import SYSTEM, VCS, Pod, World
from devicemount_agent_api.v1 import agent_pb2 as pb
from devicemount_testbed.api import Object, pod_path

MOUNT_UID = "0a0a0a0a-1111-4111-8111-111111111111"
EPOCH_KEY = "/apis/coordination.k8s.io/v1/namespaces/devicemount-system/leases/devicemount-operator"

# Runs in the control plane's network namespace, from which pod addresses are reached.
CLIENT = """
import asyncio, sys
from pathlib import Path
from google.protobuf import json_format
from devicemount_agent_api.identity import Identity
from devicemount_agent_api.tls import agent_channel
from devicemount_agent_api.v1 import agent_pb2, agent_pb2_grpc

async def main(address, tls, method, request):
    message = json_format.Parse(request, getattr(agent_pb2, method + "Request")())
    async with agent_channel(address, Identity.from_directory(Path(tls))) as channel:
        call = getattr(agent_pb2_grpc.AgentStub(channel), method)
        print(json_format.MessageToJson(await call(message, timeout=20, wait_for_ready=True)))

asyncio.run(main(*sys.argv[1:]))
"""


@dataclass
class Client:
    """Speaks to the agent of one node as the operator does."""

    world: World
    address: str
    tls: Path
    revision: int = 0

    @classmethod
    def of(cls, world: World, node: str, directory: Path) -> "Client":
        secret = f"/api/v1/namespaces/{SYSTEM}/secrets/devicemount-operator-tls"
        for name, content in world.api.call("GET", secret)["data"].items():
            (directory / name).write_bytes(base64.b64decode(content))
        selector = (
            "?labelSelector=app.kubernetes.io/component%3Dagent"
            f"&fieldSelector=spec.nodeName%3D{node}"
        )
        (pod,) = world.api.call("GET", pod_path(SYSTEM) + selector)["items"]
        return cls(world, f"{pod['status']['podIP']}:9443", directory)

    def order(self) -> dict[str, object]:
        """Return the operator's own epoch, which agents have seen, with a revision of ours."""
        lease = self.world.api.call("GET", EPOCH_KEY)
        created = datetime.fromisoformat(lease["metadata"]["creationTimestamp"])
        self.revision += 1
        return {
            "epoch": pb.Epoch(
                lease_created_ns=int(created.timestamp()) * 10**9,
                lease_uid=lease["metadata"]["uid"],
                transitions=lease["spec"].get("leaseTransitions", 0),
            ),
            "revision": self.revision,
        }

    def apply(self, target: Pod, shadow: Object) -> pb.MountState:
        request = pb.ApplyRequest(
            key=pb.MountKey(mount_uid=MOUNT_UID, pod_uid=target.uid),
            mount_name="by-hand",
            target=pb.Target(
                namespace=self.world.namespace, pod_name=target.name, container="main"
            ),
            shadow_pods=[
                pb.ShadowPod(
                    name=shadow["metadata"]["name"],
                    uid=shadow["metadata"]["uid"],
                    resources={VCS: 1},
                )
            ],
            **self.order(),  # type: ignore[arg-type]
        )
        return self.call("Apply", json_format.MessageToJson(request))

    def remove(self, target: Pod, policy: "pb.Policy.ValueType" = pb.WAIT) -> pb.MountState:
        request = pb.RemoveRequest(
            key=pb.MountKey(mount_uid=MOUNT_UID, pod_uid=target.uid),
            policy=policy,
            **self.order(),  # type: ignore[arg-type]
        )
        return self.call("Remove", json_format.MessageToJson(request))

    def call(self, method: str, request: str) -> pb.MountState:
        command = [sys.executable, "-c", CLIENT, self.address, str(self.tls), method, request]
        done = subprocess.run(
            self.world.testbed.in_control_netns(command),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json_format.Parse(done.stdout, pb.MountState())


def shadow_pod(world: World, target: Pod, ordinal: int = 0) -> Object:
    """Post a shadow pod as the operator would."""
    name = f"dm-{MOUNT_UID[:8]}-{target.uid[:8]}-{ordinal}"
    requests = {VCS: "1", "cpu": "1m", "memory": "32Mi"}
    limits = {VCS: "1", "cpu": "200m", "memory": "32Mi"}
    container = {
        "name": "hold",
        "image": "localhost/devicemount-hold:dev",
        "imagePullPolicy": "IfNotPresent",
        "command": ["/hold"],
        "resources": {"requests": requests, "limits": limits},
    }
    return world.api.call(
        "POST",
        pod_path(world.namespace),
        {
            "metadata": {
                "name": name,
                "labels": {"devicemount.io/shadow": MOUNT_UID},
                "annotations": {
                    "devicemount.io/mount": "by-hand",
                    "devicemount.io/target-uid": target.uid,
                },
            },
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": target.node},
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 59,  # else the operator would take it for its own
                "containers": [container],
            },
        },
    )


def runs(pod: Object | None) -> bool:
    return (pod or {}).get("status", {}).get("phase") == "Running"


def test_a_client_grants_and_revokes_on_a_hand_made_shadow_pod(
    world: World, node: str, tmp_path: Path
) -> None:
    target = world.pod("by-hand", node=node)
    client = Client.of(world, node, tmp_path)
    shadow = shadow_pod(world, target)

    state = client.apply(target, shadow)

    assert state.phase == pb.GRANTED, state
    (device,) = state.shadow_pods[0].devices
    path = device.nodes[0].path
    assert target.opens(path)

    removed = client.remove(target)

    assert removed.phase == pb.REMOVED, removed
    assert not target.exists(path)
    world.api.delete(
        pod_path(world.namespace, shadow["metadata"]["name"]), {"gracePeriodSeconds": 0}
    )


def test_a_lost_shadow_pod_is_let_go_as_soon_as_access_is_gone(
    world: World, node: str, tmp_path: Path
) -> None:
    target = world.pod("by-hand", node=node)
    client = Client.of(world, node, tmp_path)
    shadow = shadow_pod(world, target)
    assert client.apply(target, shadow).phase == pb.GRANTED
    path = pod_path(world.namespace, shadow["metadata"]["name"])
    world.api.until(path, runs, deadline_s=20, what="the shadow pod runs")

    world.api.delete(path)
    assert client.remove(target, pb.LOST).phase == pb.REMOVED

    world.api.until(path, lambda pod: pod is None, deadline_s=10, what="the fence is lowered")
