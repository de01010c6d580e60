# SPDX-License-Identifier: Apache-2.0
"""The benchmark's place in the testbed: a namespace, a target on each node, their watches."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from bench.agent_steps import AgentSteps, agent_steps
from bench.clock import Nanoseconds, now
from bench.manifests import CHANGES, NAMESPACE, VOLUME, target_pod
from bench.probe import Change, changes_in
from bench.watches import Sightings, objects, pods_in_checkpoint
from devicemount_node_api.podresources_pb2 import ListPodResourcesRequest
from devicemount_node_api.podresources_pb2_grpc import PodResourcesListerStub
from devicemount_testbed.api import Api, DeadlineExceeded, Object, mount_path, pod_path
from devicemount_testbed.cluster import Testbed

DEADLINE_S = 60.0
FREE_POLL_S = 0.015  # the kubelet limits how often it may be asked


@dataclass(frozen=True, slots=True)
class Place:
    """One node: its kubelet's files and sockets, and the target that runs there."""

    node: str
    target: str
    checkpoint: Sightings[None]
    pod_resources: PodResourcesListerStub
    changes_file: Path  # the prober writes it, in a volume of the target

    def changes(self) -> Iterator[Change]:
        return changes_in(self.changes_file.read_text())

    def free(self, pod: str) -> Nanoseconds:
        """Return when the kubelet no longer lists devices for the pod."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            listed = self.pod_resources.List(ListPodResourcesRequest(), timeout=DEADLINE_S)
            at = now()
            if not any((p.namespace, p.name) == (NAMESPACE, pod) for p in listed.pod_resources):
                return at
            time.sleep(FREE_POLL_S)
        raise DeadlineExceeded(f"{pod}: {self.node} has its device after {DEADLINE_S:g} s")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything that an arm measures with."""

    api: Api
    pods: Sightings[Object | None]
    mounts: Sightings[Object | None]
    places: tuple[Place, ...]
    agents: AgentSteps


def is_gone(seen: Object | None) -> bool:
    return seen is None


def is_running(seen: Object | None) -> bool:
    return seen is not None and seen["status"].get("phase") == "Running"


@contextmanager
def cluster(testbed: Testbed) -> Iterator[Cluster]:
    """Make the namespace with a running target on each node; remove it in the end."""
    api = Api(testbed.kubeconfig)
    path = f"/api/v1/namespaces/{NAMESPACE}"
    _remove(api, path)
    api.make_namespace(NAMESPACE)
    try:
        pods = Sightings(objects(api, pod_path(NAMESPACE)), what="watch of pods")
        mounts = Sightings(objects(api, mount_path(NAMESPACE)), what="watch of DeviceMounts")
        places = tuple(_place(testbed, api, pods, node.name) for node in testbed.nodes)
        with agent_steps(testbed, api) as agents:
            yield Cluster(api, pods, mounts, places, agents)
    finally:
        _remove(api, path)


def _remove(api: Api, path: str) -> None:
    api.delete(path)
    api.until(path, is_gone, deadline_s=DEADLINE_S, what="removed")


def _place(testbed: Testbed, api: Api, pods: Sightings[Object | None], node: str) -> Place:
    pod = target_pod(node)
    name = pod["metadata"]["name"]
    uid = api.call("POST", pod_path(NAMESPACE), pod)["metadata"]["uid"]
    pods.first(name, is_running, what="running", deadline_s=DEADLINE_S)
    kubelet = testbed.node_root(node) / "var/lib/kubelet"
    socket = kubelet / "pod-resources/kubelet.sock"
    volume = kubelet / "pods" / uid / "volumes/kubernetes.io~empty-dir" / VOLUME
    return Place(
        node=node,
        target=name,
        checkpoint=Sightings(
            pods_in_checkpoint(kubelet / "device-plugins"), what=f"checkpoint of {node}"
        ),
        pod_resources=PodResourcesListerStub(grpc.insecure_channel(f"unix://{socket}")),
        changes_file=volume / CHANGES,
    )
