# SPDX-License-Identifier: Apache-2.0
"""A DeviceMount as a person makes it, with kubectl, and what it brought into the container."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cluster.world import DEADLINE_S, Mount, Pod, World, eventually
from devicemount_testbed.api import Object
from vendors.inside import Picture, picture

OURS = "/run/devicemount"  # in the container: what is said to its programs
ALLOWED, REFUSED = "ENXIO", "EPERM"  # what open says of a device that has no driver
ERRORS = {
    "No such device or address": "ENXIO",
    "Operation not permitted": "EPERM",
    "Permission denied": "EACCES",
}
MODES = {"r": "<", "w": ">", "rw": "<>"}


def apply(
    world: World, pod: Pod, limits: Mapping[str, int], *, name: str = "borrowed", **spec: object
) -> Mount:
    """Apply a DeviceMount with kubectl; it is not waited for."""
    body = {
        "apiVersion": "devicemount.io/v1alpha1",
        "kind": "DeviceMount",
        "metadata": {"name": name, "namespace": world.namespace},
        "spec": {
            "target": {"podName": pod.name},
            "resources": {"limits": dict(limits)},
            **spec,
        },
    }
    world.testbed.kubectl("apply", "-f", "-", input=json.dumps(body))
    return Mount(world, name)


def delete(mount: Mount) -> None:
    """Delete a DeviceMount with kubectl, which waits until it is gone."""
    names = ("-n", mount.world.namespace, f"devicemount/{mount.name}")
    mount.world.testbed.kubectl("delete", *names, f"--timeout={DEADLINE_S:g}s")


def await_allocatable(world: World, node: str, limits: Mapping[str, int]) -> None:
    """Wait until the scheduler can see the devices, which the kubelet reports now and then."""

    def is_seen() -> bool:
        status = world.api.call("GET", f"/api/v1/nodes/{node}")["status"]
        return all(int(status["allocatable"].get(one, 0)) >= n for one, n in limits.items())

    eventually(is_seen, what=f"{node} offers {dict(limits)}", deadline_s=60)


def look(pod: Pod) -> Picture:
    status = pod.object()["status"]["containerStatuses"][0]
    return picture(status["containerID"])


def opens(pod: Pod, paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return what open answers in a container with a shell: path -> r, w, rw -> error or ok."""
    asked = [(path, mode) for path in sorted(paths) for mode in MODES]
    script = "; ".join(f"(: {MODES[mode]} {path}) 2>&1 || true; echo ==" for path, mode in asked)
    answers = pod.sh(script).split("==\n")
    found: dict[str, dict[str, str]] = {}
    for (path, mode), said in zip(asked, answers, strict=False):
        text = said.strip()
        error = next((e for words, e in ERRORS.items() if words in text), text)
        found.setdefault(path, {})[mode] = error or "ok"
    return found


def opens_by_number(pod: Pod, numbers: Iterable[str]) -> dict[str, str]:
    """Return what open answers for devices ("c 195:0"), wherever their own files are."""
    wanted = sorted(set(numbers))
    script = "; ".join(
        f"mknod /tmp/by-number {number.replace(':', ' ')}; (: < /tmp/by-number) 2>&1 || true; "
        "rm /tmp/by-number; echo =="
        for number in wanted
    )
    answers = pod.sh(script).split("==\n")
    return {
        number: next((e for words, e in ERRORS.items() if words in said), said.strip() or "ok")
        for number, said in zip(wanted, answers, strict=False)
    }


@dataclass(frozen=True)
class Loan:
    """A pod before, and what a DeviceMount brought into it, besides what we say there."""

    pod: Pod
    mount: Mount
    before: Picture
    came: Picture

    def still_there(self) -> None:
        assert come(self.pod, self.before) == self.came

    def give_back(self) -> None:
        """Delete the DeviceMount; nothing of it may be left."""
        delete(self.mount)
        assert look(self.pod) == self.before
        numbers = self.came.numbers().values()
        assert set(opens_by_number(self.pod, numbers).values()) <= {REFUSED}
        notes = (pod["metadata"]["annotations"] for pod in self.mount.world.shadow_pods())
        assert self.mount.name not in [one["devicemount.io/mount"] for one in notes]


def borrow(world: World, pod: Pod, limits: Mapping[str, int], **spec: object) -> Loan:
    """Mount devices into a pod that runs, and see what has come."""
    before = look(pod)
    mount = apply(world, pod, limits, **spec).ready()
    return Loan(pod, mount, before, come(pod, before))


def come(pod: Pod, before: Picture) -> Picture:
    """Return what has come, but for the mount by which we speak to the container's programs."""
    came = look(pod).since(before)
    assert came.mounts[OURS].is_read_only
    rest = {path: mount for path, mount in came.mounts.items() if path != OURS}
    return replace(came, mounts=rest)


def condition(mount: Mount, name: str) -> Object:
    conditions = mount.object()["status"]["conditions"]
    return next((one for one in conditions if one["type"] == name), {})
