# SPDX-License-Identifier: Apache-2.0
"""`make demo`: the README's DeviceMount on each node, from nothing to an open device and back.

It asserts what it shows and exits with 1 if anything differs. Its pods are removed at the end; the
cluster stays for the next time.
"""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from devicemount_testbed.api import Api, Object, is_ready, mount_path, pod_path
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.report import say
from devicemount_testbed.vcs import NUMBERS, OPENABLE, VCS, free_devices

README = Path(__file__).parents[2] / "README.md"
NAMESPACE = "devicemount-demo"
DEADLINE_S = 60.0
# Opens each of the four at its own path again and again, and says once which one it could open.
PROBER = (
    "while :; do for d in vcs vcs1 vcsu1 vcsa1; do "
    "if true 2>/dev/null < /dev/$d; then echo $d; exit; fi; done; usleep 1000; done"
)


class Differs(Exception):
    """Something is not as this demonstration claims."""


def claim(sentence: str, *, holds: bool) -> None:
    """Print a checked sentence; raise Differs if it is not so."""
    print(f"  {'ok' if holds else 'NO'}  {sentence}", flush=True)
    if not holds:
        raise Differs(sentence)


@dataclass
class TimeLine:
    """Moments in milliseconds: seen here since the posting, and by the operator since its event."""

    posted: float = 0.0
    moments: dict[str, float] = field(default_factory=dict)
    reported: dict[str, float] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        self.moments.setdefault(name, (time.monotonic() - self.posted) * 1000)

    def show(self) -> None:
        _show(self.moments)
        print("    of that, by the operator's own clock from its first sight of the object:")
        _show(self.reported)


def _show(moments: dict[str, float]) -> None:
    for name, after_ms in sorted(moments.items(), key=lambda moment: moment[1]):
        print(f"      {after_ms:8.1f} ms  {name}", flush=True)


@dataclass(frozen=True)
class Notebook:
    """A plain busybox pod that was started without any device."""

    testbed: Testbed
    api: Api
    name: str

    def run(self, script: str) -> str:
        """Run a shell line in it and return what it prints."""
        return self.testbed.kubectl("exec", "-n", NAMESPACE, self.name, "--", "sh", "-c", script)

    def openable(self) -> set[str]:
        """Return the names of the four devices whose numbers may be opened in the container."""
        return set(self.run(OPENABLE).split())

    def identity(self) -> tuple[str, int, str]:
        """Return container id, restart count and the start time of its first process."""
        pod = self.api.call("GET", pod_path(NAMESPACE, self.name))
        status = pod["status"]["containerStatuses"][0]
        started = self.run("cut -d' ' -f22 /proc/1/stat").strip()
        return status["containerID"], status["restartCount"], started


def main() -> None:
    testbed = Testbed.from_record()
    api = Api(testbed.kubeconfig)
    try:
        with _namespace(api):
            for node in testbed.nodes:
                _on_node(testbed, api, node.name)
    except Differs as difference:
        say(f"the demonstration failed: {difference}")
        sys.exit(1)
    say("the cluster stays up; `make -s kubeconfig` prints its kubeconfig, `make clean` removes it")


@contextmanager
def _namespace(api: Api) -> Iterator[None]:
    path = f"/api/v1/namespaces/{NAMESPACE}"
    api.delete(path)
    api.until(path, lambda found: found is None, deadline_s=DEADLINE_S, what="removed")
    api.make_namespace(NAMESPACE)
    try:
        yield
    finally:
        api.delete(path)


def _on_node(testbed: Testbed, api: Api, node: str) -> None:
    say(f"{node}: a busybox pod, started without any device")
    notebook = Notebook(testbed, api, f"notebook-{node}")
    _start(notebook, node)
    before, free = notebook.identity(), free_devices(api, node)
    claim(f"none of {', '.join(NUMBERS)} opens in it", holds=not notebook.openable())
    mount = readme_mount(notebook.name)
    name = mount["metadata"]["name"]
    say(f"{node}: kubectl apply, the DeviceMount of the README")
    line, opened = _mount(notebook, mount)
    line.show()
    ready = api.call("GET", mount_path(NAMESPACE, name))
    device = ready["status"]["targets"][0]["devices"][0]["nodes"][0]["path"].rsplit("/", 1)[-1]
    claim(f"status names /dev/{device}, the one that opened first", holds=device == opened)
    claim(f"exactly {device} opens in the container", holds=notebook.openable() == {device})
    claim("one device fewer is free on the node", holds=free_devices(api, node) == free - 1)
    say(f"{node}: kubectl delete")
    started = time.monotonic()
    api.delete(mount_path(NAMESPACE, name))
    api.until(
        mount_path(NAMESPACE, name), lambda m: m is None, deadline_s=DEADLINE_S, what="removed"
    )
    print(
        f"      {(time.monotonic() - started) * 1000:8.1f} ms  the DeviceMount is gone", flush=True
    )
    claim("no device opens any more", holds=not notebook.openable())
    gone = notebook.run(f"ls /dev/{device} 2>/dev/null || echo gone").strip() == "gone"
    claim(f"/dev/{device} is gone", holds=gone)
    claim("it is the same container, not restarted", holds=notebook.identity() == before)
    claim("the device is free again", holds=free_devices(api, node) == free)


def _start(notebook: Notebook, node: str) -> None:
    spec = {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "notebook", "image": "localhost/busybox:1"}],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": notebook.name}, "spec": spec}
    notebook.api.call("POST", pod_path(NAMESPACE), pod)
    notebook.api.until(
        pod_path(NAMESPACE, notebook.name),
        lambda found: found is not None and found["status"].get("phase") == "Running",
        deadline_s=DEADLINE_S,
        what="running",
    )


def readme_mount(pod_name: str) -> Object:
    """Return the README's DeviceMount, with the resource and the pod of the testbed."""
    blocks = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    mount: Object = next(
        found for found in map(yaml.safe_load, blocks) if found.get("kind") == "DeviceMount"
    )
    mount["metadata"]["namespace"] = NAMESPACE
    mount["spec"]["target"] = {"podName": pod_name}
    mount["spec"]["resources"] = {"limits": {VCS: 1}}
    return mount


def _mount(notebook: Notebook, mount: Object) -> tuple[TimeLine, str]:
    """Post the DeviceMount and return the time line until Ready, and what opened first."""
    line = TimeLine()
    prober = subprocess.Popen(
        notebook.testbed.kubectl_command(
            "exec", "-n", NAMESPACE, notebook.name, "--", "sh", "-c", f"echo started; {PROBER}"
        ),
        env=notebook.testbed.kubectl_environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert prober.stdout is not None  # noqa: S101  a pipe was asked for
    prober.stdout.readline()
    reserved = threading.Thread(target=_mark_shadow_pod, args=(notebook.api, line), daemon=True)
    line.posted = time.monotonic()
    reserved.start()
    notebook.api.call("POST", mount_path(NAMESPACE), mount)
    line.mark("posted: the API server has the DeviceMount")
    opened = prober.stdout.readline().strip()
    line.mark(f"first open of /dev/{opened} in the container")
    prober.wait(timeout=DEADLINE_S)
    for kind, found in notebook.api.watch(mount_path(NAMESPACE), deadline_s=DEADLINE_S):
        if kind != "DELETED" and is_ready(found):
            line.mark("Ready, seen by watch")
            _mark_timings(line, found)
            break
    reserved.join(timeout=DEADLINE_S)
    return line, opened


def _mark_shadow_pod(api: Api, line: TimeLine) -> None:
    path = pod_path(NAMESPACE) + "?labelSelector=devicemount.io/shadow"
    for kind, pod in api.watch(path, deadline_s=DEADLINE_S):
        if kind == "ADDED" and not pod["metadata"].get("deletionTimestamp"):
            line.mark(f"reserved: shadow pod {pod['metadata']['name']}")
            return


def _mark_timings(line: TimeLine, mount: Object) -> None:
    timings = mount["status"]["targets"][0]["timings"]
    line.reported["allocated: the kubelet chose the device"] = timings["reservedMs"]
    line.reported["granted, and verified inside the container"] = timings["grantedMs"]


if __name__ == "__main__":
    main()
