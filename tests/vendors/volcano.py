# SPDX-License-Identifier: Apache-2.0
"""Volcano's vGPU: a scheduler that decides by annotations, and a device plugin that guesses.

What both write and read is that of the real ones (tests/data/vendor-answers/volcano-vgpu.json;
Project-HAMi/volcano-vgpu-device-plugin, pkg/plugin/server.go and pkg/util/util.go): the scheduler
notes slices in the pod and binds it, and the plugin, which is not told whose call it answers,
takes the oldest pod of the node that waits for as many. It can be another's. The node lock
(volcano.sh/mutex.lock), which the real scheduler takes before it binds, is left out unless asked
for: with it there would be nothing to tell apart.
"""

import itertools
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

from devicemount_node_api import deviceplugin_pb2 as pb
from devicemount_operator.shadow_pod import node_of
from devicemount_testbed.api import MERGE_PATCH, Api, ApiError, Object, pod_path
from devicemount_testbed.cluster import Testbed
from vendors.node import NodeFiles
from vendors.nvidia import driver, minors
from vendors.plugin import Refused, StandIn, registered

NUMBER = "volcano.sh/vgpu-number"
MEMORY = "volcano.sh/vgpu-memory"
CORES = "volcano.sh/vgpu-cores"
SCHEDULER = "volcano"

NODE = "volcano.sh/vgpu-node"
TIME = "volcano.sh/vgpu-time"
BIND_TIME = "volcano.sh/bind-time"
PHASE = "volcano.sh/bind-phase"
DECIDED = "volcano.sh/vgpu-ids-new"
TO_ALLOCATE = "volcano.sh/devices-to-allocate"
NEVER = str(2**64 - 1)

HOOK_PATH = "/usr/local/vgpu"
SLICES = 10  # of each GPU
MEMORY_IDS = 2000  # of each GPU, one a MiB: the real plugin has some 80,000 of a large one
WATCH_S = 0.05  # each look lists pods, on all nodes at once
SEED = 13


@dataclass(frozen=True)
class Slice:
    """One virtual GPU of a pod, as the annotations spell it."""

    gpu: str
    memory: int
    cores: int

    def __str__(self) -> str:
        return f"{self.gpu},NVIDIA,{self.memory},{self.cores}:"


def parse(annotation: str) -> list[Slice]:
    """Return the slices of a pod of one container."""
    items = [item.split(",") for item in annotation.split(":") if "," in item]
    return [Slice(gpu, int(memory), int(cores)) for gpu, _, memory, cores in items]


@dataclass
class Volcano:
    """The scheduler and the plugin of one node."""

    testbed: Testbed
    node: str
    api: Api
    files: NodeFiles
    gpus: tuple[str, ...]
    answered: list[tuple[str, list[str]]] = field(default_factory=list)  # (pod UID, ids)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _turn: Iterator[str] = field(init=False)

    def __post_init__(self) -> None:
        self._turn = itertools.cycle(self.gpus)

    def schedule(self) -> None:
        """Decide on pods and bind them until stopped.

        Decided is in the order of their names, bound in any order: the real scheduler binds each
        pod by a task of its own.
        """
        asked = f"/api/v1/pods?fieldSelector=spec.schedulerName%3D{SCHEDULER},spec.nodeName%3D"
        shuffle = random.Random(SEED).shuffle  # noqa: S311  nothing is to be kept secret
        while not self._stopped.wait(WATCH_S):
            found = self.api.call("GET", asked)["items"]
            pods = [pod for pod in found if _is_waiting(pod) and _may_go(pod, self.node)]
            for pod in pods:
                self._decide(pod)
            shuffle(pods)
            for pod in pods:
                self._bind(pod)

    def stop(self) -> None:
        self._stopped.set()

    def _decide(self, pod: Object) -> None:
        limits = pod["spec"]["containers"][0]["resources"].get("limits", {})
        memory = int(limits.get(MEMORY, 0))
        cores = int(limits.get(CORES, 0))
        slices = [Slice(next(self._turn), memory, cores) for _ in range(int(limits.get(NUMBER, 0)))]
        now = str(int(time.time()))
        notes = {
            NODE: self.node,
            TIME: now,
            BIND_TIME: now,
            PHASE: "allocating",
            DECIDED: "".join(map(str, slices)),
            TO_ALLOCATE: "".join(map(str, slices)),
        }
        with _unless_it_went():
            self._note(_path_of(pod), notes)

    def _bind(self, pod: Object) -> None:
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]},
            "target": {"kind": "Node", "name": self.node},
        }
        with _unless_it_went():
            self.api.call("POST", f"{_path_of(pod)}/binding", binding)

    def allocate(self, ids: list[str]) -> pb.ContainerAllocateResponse:
        """Answer for the oldest pod that waits for as many slices, as the plugin does."""
        pods = self.api.call("GET", "/api/v1/pods")["items"]
        waiting = [pod for pod in pods if self._waits_for(pod, len(ids))]
        if not waiting:
            raise Refused("cannot get valid pod")
        pod = min(waiting, key=lambda one: int(one["metadata"]["annotations"][TIME]))
        meta = pod["metadata"]
        slices = parse(meta["annotations"][TO_ALLOCATE])
        try:
            self._note(_path_of(pod), {TO_ALLOCATE: "", TIME: NEVER, PHASE: "success"})
        except ApiError as error:
            raise Refused(f"{meta['name']}: {error}") from error
        self.answered.append((meta["uid"], [one.gpu for one in slices]))
        return self._answer(meta["uid"], pod["spec"]["containers"][0]["name"], slices)

    def _waits_for(self, pod: Object, count: int) -> bool:
        notes = pod["metadata"].get("annotations", {})
        return notes.get(NODE) == self.node and len(parse(notes.get(TO_ALLOCATE, ""))) == count

    def _answer(
        self, uid: str, container: str, slices: list[Slice]
    ) -> pb.ContainerAllocateResponse:
        cache = f"{HOOK_PATH}/vgpu/containers/{uid}_{container}"
        self.files.at(cache).mkdir(parents=True, exist_ok=True)
        limits = {
            f"CUDA_DEVICE_MEMORY_LIMIT_{place}": f"{one.memory}m"
            for place, one in enumerate(slices)
        }
        return pb.ContainerAllocateResponse(
            envs={
                "NVIDIA_VISIBLE_DEVICES": ",".join(one.gpu for one in slices),
                **limits,
                "CUDA_DEVICE_SM_LIMIT": str(slices[0].cores),
                "CUDA_DEVICE_MEMORY_SHARED_CACHE": f"/tmp/vgpu/{uuid.uuid4()}.cache",
            },
            mounts=[
                pb.Mount(
                    container_path="/usr/local/vgpu/libvgpu.so",
                    host_path=f"{HOOK_PATH}/libvgpu.so",
                    read_only=True,
                ),
                pb.Mount(container_path="/tmp/vgpu", host_path=cache),
                pb.Mount(container_path="/tmp/vgpulock", host_path="/tmp/vgpulock"),
                pb.Mount(
                    container_path="/etc/ld.so.preload",
                    host_path=f"{HOOK_PATH}/ld.so.preload",
                    read_only=True,
                ),
            ],
        )

    def _note(self, path: str, annotations: dict[str, str]) -> None:
        body = {"metadata": {"annotations": annotations}}
        self.api.call("PATCH", path, body, kind=MERGE_PATCH)


def _is_waiting(pod: Object) -> bool:
    return not pod["spec"].get("schedulingGates") and "deletionTimestamp" not in pod["metadata"]


def _may_go(pod: Object, node: str) -> bool:
    """Tell whether the pod names that node, as a shadow pod does, or none."""
    selected = pod["spec"].get("nodeSelector", {}).get("kubernetes.io/hostname", node)
    return node == (node_of(pod) or selected)


def _path_of(pod: Object) -> str:
    return pod_path(pod["metadata"]["namespace"], pod["metadata"]["name"])


@contextmanager
def _unless_it_went() -> Iterator[None]:
    """A pod may be deleted, and one of the same name be there, at any time."""
    try:
        yield
    except ApiError as error:
        if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
            raise


@contextmanager
def volcano(testbed: Testbed, node: str, *, memory_ids: int = MEMORY_IDS) -> Iterator[Volcano]:
    """Make the node a machine with GPUs in Volcano's care; this scheduler uses no other node."""
    gpus = tuple(minors())
    api = Api(testbed.kubeconfig)
    with driver(testbed, node) as files:
        files.file(f"{HOOK_PATH}/libvgpu.so", b"\x7fELF, a stand-in")
        files.file(f"{HOOK_PATH}/ld.so.preload", f"{HOOK_PATH}/libvgpu.so\n")
        files.directory("/tmp/vgpulock")
        made = Volcano(testbed, node, api, files, gpus)
        empty = pb.ContainerAllocateResponse()
        stand_ins = (
            StandIn(NUMBER, _ids(gpus, "", SLICES), made.allocate),
            StandIn(MEMORY, _ids(gpus, "memory-", memory_ids), lambda ids: empty),
            StandIn(CORES, _ids(gpus, "core-", 100), lambda ids: empty),
        )
        scheduler = threading.Thread(target=made.schedule, daemon=True)
        with registered(testbed, node, *stand_ins):
            scheduler.start()
            try:
                yield made
            finally:
                made.stop()
                scheduler.join()


def _ids(gpus: tuple[str, ...], kind: str, count: int) -> list[str]:
    return [f"{gpu}-{kind}{number}" for gpu in gpus for number in range(count)]
