# SPDX-License-Identifier: Apache-2.0
"""What the scenarios speak of: pods and DeviceMounts of one namespace on the running testbed.

Everything waits for a condition with a deadline; nothing sleeps for a time.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from devicemount_testbed.api import (
    Api,
    ApiError,
    Object,
    condition,
    is_ready,
    mount_path,
    pod_path,
)
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.vcs import OPENABLE, VCS, free_devices
from devicemount_testbed.waiting import wait_until

SYSTEM = "devicemount-system"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/devicemount-operator"
LOOP = "testbed.devicemount.io/loop"
FUSE = "testbed.devicemount.io/fuse"
MANY_DEVICES = "testbed.devicemount.io/many"
DEADLINE_S = 30.0


def eventually(test: Callable[[], bool], *, what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return as soon as the test holds; raise Timeout after the deadline."""
    wait_until(test, what=what, seconds=deadline_s)


@dataclass(frozen=True)
class Pod:
    """A pod of a test, running."""

    world: "World"
    name: str
    node: str

    @property
    def path(self) -> str:
        return pod_path(self.world.namespace, self.name)

    def object(self) -> Object:
        return self.world.api.call("GET", self.path)

    @property
    def uid(self) -> str:
        return str(self.object()["metadata"]["uid"])

    def command(self, *argv: str, container: str = "") -> list[str]:
        chosen = ["-c", container] if container else []
        return self.world.testbed.kubectl_command(
            "exec", "-n", self.world.namespace, self.name, *chosen, "--", *argv
        )

    def run(self, *argv: str, container: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program in the container and return its status and output."""
        return subprocess.run(
            self.command(*argv, container=container),
            env=self.world.testbed.kubectl_environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def sh(self, script: str, *, container: str = "") -> str:
        return self.run("sh", "-c", script, container=container).stdout

    def opens(self, path: str) -> bool:
        """Tell whether the file at that path can be opened in the container (busybox)."""
        return self.sh(f"if true 2>/dev/null < {path}; then echo yes; fi").strip() == "yes"

    def exists(self, path: str) -> bool:
        return self.sh(f"if [ -e {path} ]; then echo yes; fi").strip() == "yes"

    def openable(self) -> set[str]:
        """Return which of the vcs devices may be opened by number, wherever their files are."""
        return set(self.sh(OPENABLE).split())

    def identity(self) -> tuple[str, int, str]:
        """Return container id, restart count and the start time of PID 1."""
        status = self.object()["status"]["containerStatuses"][0]
        started = self.sh("cut -d' ' -f22 /proc/1/stat").strip()
        return status["containerID"], status["restartCount"], started

    @contextmanager
    def holding(self, path: str) -> Iterator[None]:
        """Keep the file open by a process in the container; its command line has `tail`."""
        with subprocess.Popen(
            self.command("sh", "-c", f"exec 9<{path}; echo holding; exec tail -f /dev/null"),
            env=self.world.testbed.kubectl_environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as held:
            assert held.stdout is not None
            assert held.stdout.readline().strip() == "holding"
            try:
                yield
            finally:
                self.end_holders()
                held.wait(timeout=DEADLINE_S)

    def end_holders(self) -> None:
        self.sh("for p in $(pidof tail); do kill -9 $p; done")

    def kill_main_process(self) -> None:
        """End the container's first process from outside, as an OOM kill would."""
        container = self.identity()[0].rpartition("/")[2]
        script = (
            f"for p in $(grep -ls {container} /proc/[0-9]*/cgroup | cut -d/ -f3); do "
            'if grep -q "^NSpid:.*[[:space:]]1$" /proc/$p/status; then kill -9 $p; fi; done'
        )
        done = self.world.testbed.exec(self.node, ["sh", "-c", script])
        assert done.returncode == 0, done.stderr

    def delete(self) -> None:
        self.world.api.delete(self.path, {"gracePeriodSeconds": 0})


@dataclass(frozen=True)
class Mount:
    """A DeviceMount of a test."""

    world: "World"
    name: str

    @property
    def path(self) -> str:
        return mount_path(self.world.namespace, self.name)

    def object(self) -> Object:
        return self.world.api.call("GET", self.path)

    def ready(self, deadline_s: float = DEADLINE_S) -> "Mount":
        """Wait until it is Ready."""
        self.world.api.until(self.path, is_ready, deadline_s=deadline_s, what="Ready")
        return self

    def not_ready(self, reason: str, *, deadline_s: float = DEADLINE_S) -> str:
        """Wait until it says Ready=False with that reason; return the message."""

        def said(found: Object | None) -> bool:
            ready = condition(found, "Ready")
            return ready.get("status") == "False" and ready.get("reason") == reason

        found = self.world.api.until(
            self.path, said, deadline_s=deadline_s, what=f"Ready=False with {reason}"
        )
        return str(condition(found, "Ready")["message"])

    @property
    def target(self) -> Object:
        target: Object = self.object()["status"]["targets"][0]
        return target

    def files(self) -> list[str]:
        """Return the paths of its device files in the container."""
        return [node["path"] for device in self.target["devices"] for node in device["nodes"]]

    def ask_delete(self) -> None:
        self.world.api.delete(self.path)

    def gone(self, deadline_s: float = DEADLINE_S) -> None:
        self.world.api.until(self.path, lambda m: m is None, deadline_s=deadline_s, what="gone")

    def delete(self, deadline_s: float = DEADLINE_S) -> None:
        """Delete it and wait until it is gone."""
        self.ask_delete()
        self.gone(deadline_s)

    def shadow_pods(self) -> list[Object]:
        uid = self.object()["metadata"]["uid"]
        path = f"{pod_path(self.world.namespace)}?labelSelector=devicemount.io/shadow%3D{uid}"
        return list(self.world.api.call("GET", path)["items"])


@dataclass
class World:
    """One namespace on the testbed."""

    testbed: Testbed
    api: Api
    namespace: str
    pods: dict[str, Pod] = field(default_factory=dict)

    def pod(
        self,
        name: str,
        *,
        node: str = "node1",
        image: str = "localhost/busybox:1",
        limits: dict[str, int] | None = None,
        **more: object,
    ) -> Pod:
        """Start a pod of one container on the node and wait until it runs."""
        container = {"name": "main", "image": image, "resources": {"limits": limits or {}}}
        spec: Object = {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            **more,
        }
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        self.api.call("POST", pod_path(self.namespace), body)
        pod = Pod(self, name, node)

        def runs(found: Object | None) -> bool:
            statuses = (found or {}).get("status", {}).get("containerStatuses") or []
            return bool(statuses) and all("running" in s["state"] for s in statuses)

        self.api.until(pod.path, runs, deadline_s=60, what="running")
        self.pods[name] = pod
        return pod

    def mount(
        self, name: str, pod: "Pod | str", *, resource: str = VCS, count: object = 1, **spec: object
    ) -> Mount:
        """Create a DeviceMount for the pod. Raises ApiError when it is refused."""
        target: Object = {"podName": pod if isinstance(pod, str) else pod.name}
        target.update(spec.pop("target", {}))  # type: ignore[call-overload]
        body: Object = {
            "apiVersion": "devicemount.io/v1alpha1",
            "kind": "DeviceMount",
            "metadata": {"name": name},
            "spec": {"target": target, "resources": {"limits": {resource: count}}, **spec},
        }
        self.api.call("POST", mount_path(self.namespace) + "?fieldValidation=Strict", body)
        return Mount(self, name)

    def refused(self, name: str, pod: "Pod | str", **arguments: object) -> str:
        """Try to create a DeviceMount that must be refused at once; return the message."""
        try:
            self.mount(name, pod, **arguments)  # type: ignore[arg-type]
        except ApiError as error:
            return error.message
        raise AssertionError(f"{arguments} was not refused")

    def shadow_pods(self) -> list[Object]:
        path = pod_path(self.namespace) + "?labelSelector=devicemount.io/shadow"
        return list(self.api.call("GET", path)["items"])

    def free(self, node: str, resource: str = VCS) -> int:
        """Return the node's allocatable devices less the requests of its unfinished pods."""
        return free_devices(self.api, node, resource)

    def kill(self, node: str, program: str) -> None:
        """Kill a program of the node's own, which is started again."""
        killed = self.testbed.exec(node, ["sh", "-c", f"kill -9 $(pidof {program})"])
        assert killed.returncode == 0, killed.stderr

    def leader(self) -> str:
        """Return the name of the operator's pod that holds the Lease; "" while none does."""
        return str(self.api.call("GET", LEASE)["spec"].get("holderIdentity") or "")

    def operator_log(self) -> str:
        return self.testbed.kubectl("logs", "-n", SYSTEM, self.leader())
