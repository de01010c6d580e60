# SPDX-License-Identifier: Apache-2.0
"""The support matrix: every shape of container, on every node, with each runtime.

A device is mounted, opened as the container's user, and taken back; afterwards the container can do
exactly what it could before. All of a node's pods live at once, and so do their DeviceMounts. What
came of it is written to dist/support.json, of which docs/support.md is made (tools/support.py).
"""

import platform
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.inventory import filters_of
from cluster.world import FUSE, MANY_DEVICES, Mount, Pod, World
from devicemount_testbed.api import Api, Object, condition, pod_path
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.topology import Node, node_named
from tools import support
from tools.support import Found, Outcome, Row, Versions

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "dist/support.json"
DEADLINE_S = 60.0
AT_ONCE = 4  # kubectl processes
NOT_OURS = "/dev/null"
FROM_START = "/dev/fuse"
BUSYBOX, DISTROLESS = "localhost/busybox:1", "localhost/scratch-target:1"
RUNTIMES = ("runc", "crun")
# What can never run here, by the runtime's own words. Whatever else fails, fails the test.
CANNOT_RUN = re.compile(
    r"OCI runtime create failed: (cgroups in hybrid mode not supported.*)"  # crun on node1
)
# Group 0, as platforms have it that give each project its own user: the nodes are root:root, 0660.
HARDENED: Object = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 0,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}
NEST = (
    'c=%s; p=$(grep -lE "$c" /proc/[0-9]*/cgroup | cut -d/ -f3 | sort -n | head -n 1); '
    "for d in /sys/fs/cgroup/devices /sys/fs/cgroup /sys/fs/cgroup/unified; do "
    'w=$(find $d -maxdepth 7 -type d -name "*$c*" 2>/dev/null | head -n 1); '
    '[ -n "$w" ] && break; done; '
    'mkdir -p "$w/init.scope" && for p in $(cat "$w/cgroup.procs") $(cat "$w"/*/cgroup.procs); do '
    'echo $p > "$w/init.scope/cgroup.procs"; done; cat "$w/init.scope/cgroup.procs"'
)


@dataclass(frozen=True)
class Shape:
    """One kind of container."""

    name: str
    security: Object | None = None
    image: str = BUSYBOX
    limits: dict[str, int] | None = None
    spec: Object | None = None
    is_nested: bool = False

    def pod(self, name: str, *, node: str, runtime: str) -> Object:
        container = {
            "name": "main",
            "image": self.image,
            "resources": {"limits": self.limits or {}},
            "securityContext": self.security or {},
        }
        spec: Object = {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            **({"runtimeClassName": runtime} if runtime != "runc" else {}),
            **(self.spec or {}),
        }
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


SHAPES = (
    Shape("plain"),
    Shape("own user namespace", spec={"hostUsers": False}),
    Shape("read-only root, user 1000 of group 0, no capabilities", security=HARDENED),
    Shape("distroless", image=DISTROLESS),
    Shape("nested cgroups", is_nested=True),
    Shape("privileged", security={"privileged": True}),
    Shape("a device from the start", limits={FUSE: 1}),
)


@dataclass(frozen=True)
class Case:
    shape: Shape
    runtime: str
    pod: Pod

    @property
    def is_privileged(self) -> bool:
        return self.shape.name == "privileged"

    def opens(self, *paths: str) -> dict[str, str]:
        """Return what opening each for reading says, as the container's user: "ok" or the errno."""
        if self.shape.image == DISTROLESS:
            lines = self.pod.run("/target", "open", *paths).stdout.splitlines()
            return dict(line.split(" ", 1) for line in lines)
        script = "; ".join(f"(: < {path}) 2>&1 && echo ok" for path in paths)
        lines = self.pod.run("sh", "-c", script).stdout.splitlines()
        return dict(zip(paths, map(_errno, lines), strict=True))


@dataclass(frozen=True)
class Without:
    """What a container may do without our device."""

    opened: str  # what opening its path says
    own: dict[str, str]
    filters: tuple[str, ...]


@dataclass(frozen=True)
class Given:
    """What it may do with it."""

    path: str
    opened: str
    says_isolated: bool


def _errno(line: str) -> str:
    says = {
        "No such device or address": "ENXIO",
        "Operation not permitted": "EPERM",
        "Permission denied": "EACCES",
        "no such file": "ENOENT",
    }
    said = line.rpartition(": ")[2]
    return says.get(said, said)


@pytest.fixture(scope="module")
def rows(testbed: Testbed, api: Api) -> Iterator[list[Row]]:
    """All that came of it, written when every node has been seen."""
    found: list[Row] = []
    yield found
    RESULTS.parent.mkdir(exist_ok=True)
    result = Found(_versions(testbed, api), tuple(found))
    RESULTS.write_text(support.to_json(result), encoding="utf-8")


def test_every_shape_gets_its_device_and_gives_it_back(
    world: World, each_node: str, rows: list[Row]
) -> None:
    on = node_named(each_node)
    started, refused = _started(world, on)
    assert not {case.runtime for case, _ in refused} & set(on.runtimes)
    rows += [_row(on, case, Outcome.NOT_RUN, why) for case, why in refused]
    for case in started:
        if case.shape.is_nested:
            _nest(world, case.pod)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        seen = list(threads.map(lambda case: _without(on, case), started))
        mounts = [
            world.mount(f"m-{case.pod.name}", case.pod, resource=MANY_DEVICES) for case in started
        ]
        list(threads.map(lambda mount: mount.ready(DEADLINE_S), mounts))
        given = list(threads.map(_given, started, mounts))
        for mount in mounts:
            mount.ask_delete()
        list(threads.map(lambda mount: mount.gone(DEADLINE_S), mounts))
        after = list(threads.map(lambda case, was: _without(on, case, was.path), started, given))

    for case, at_first, was, at_last in zip(started, seen, given, after, strict=True):
        name = f"{case.runtime}, {case.shape.name}"
        assert was.path.startswith("/dev/many"), name
        assert was.opened == "ENXIO", name  # allowed: no driver has the number
        assert was.says_isolated is not case.is_privileged, name
        assert at_last.opened == ("ENXIO" if case.is_privileged else "ENOENT"), name
        assert (at_last.own, at_last.filters) == (at_first.own, at_first.filters), name
        rows.append(_row(on, case, Outcome.WORKS, ""))


def test_the_page_of_support_says_the_same(rows: list[Row]) -> None:
    """It is made of a file that is checked in; other versions may well be in it."""
    nodes = {row.node for row in rows}
    said = [row for row in support.read().rows if row.node in nodes]
    assert support.outcomes(rows) == support.outcomes(said), "run: make support"


def _started(world: World, node: Node) -> tuple[list[Case], list[tuple[Case, str]]]:
    """Start a pod of each kind; return those that run, and those that cannot run, with why."""
    cases = []
    for runtime in RUNTIMES:
        for number, shape in enumerate(SHAPES):
            name = f"{runtime}-{number}"
            body = shape.pod(name, node=node.name, runtime=runtime)
            world.api.call("POST", pod_path(world.namespace), body)
            cases.append(Case(shape, runtime, Pod(world, name, node.name)))
    running, refused = [], []
    for case in cases:
        why = _runs_or_why_not(world, case.pod)
        if why is None:
            running.append(case)
        else:
            refused.append((case, why))
            case.pod.delete()
    return running, refused


def _runs_or_why_not(world: World, pod: Pod) -> str | None:
    """Wait until a pod runs; return what the runtime says where it cannot."""
    why: list[str] = []

    def is_decided(found: Object | None) -> bool:
        statuses = (found or {}).get("status", {}).get("containerStatuses") or []
        if statuses and all("running" in status["state"] for status in statuses):
            return True
        why[:] = _cannot_run(world, pod.name)
        return bool(why)

    world.api.until(pod.path, is_decided, deadline_s=DEADLINE_S, what="running, or why not")
    return why[0] if why else None


def _cannot_run(world: World, name: str) -> list[str]:
    """Return the runtime's own words on a container that it can never make here."""
    path = f"/api/v1/namespaces/{world.namespace}/events?fieldSelector=involvedObject.name%3D{name}"
    events = world.api.call("GET", path)["items"]
    found = (CANNOT_RUN.search(event["message"]) for event in events)
    return [match[1] for match in found if match]


def _nest(world: World, pod: Pod) -> None:
    """Move the container's processes into a cgroup of their own below its, as systemd does."""
    container = pod.object()["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
    done = world.testbed.exec(pod.node, ["sh", "-c", NEST % container])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "no process was moved"


def _without(node: Node, case: Case, path: str = "/dev/many") -> "Without":
    opened = case.opens(NOT_OURS, FROM_START, path)
    return Without(
        opened=opened.pop(path), own=opened, filters=tuple(filters_of(node, case.pod.uid))
    )


def _given(case: Case, mount: Mount) -> "Given":
    found = mount.object()
    (path,) = mount.files()
    opened = case.opens(path, NOT_OURS)
    assert opened[NOT_OURS] == "ok", case.pod.name
    message = str(condition(found, "Ready")["message"])
    return Given(path, opened[path], says_isolated="privileged" not in message)


def _versions(testbed: Testbed, api: Api) -> Versions:
    node = api.call("GET", "/api/v1/nodes/node1")["status"]["nodeInfo"]
    return Versions(
        kubernetes=node["kubeletVersion"].removeprefix("v"),
        containerd=_number(node["containerRuntimeVersion"]),
        runc=_number(testbed.exec("node1", ["runc", "--version"]).stdout),
        crun=testbed.record.crun,
        kernel=".".join(_number(node["kernelVersion"]).split(".")[:2]),
        machine=platform.machine(),
    )


def _number(text: str) -> str:
    """Return the first version in it: containerd://v2.4.2+unknown -> 2.4.2."""
    found = re.search(r"[0-9]+(?:\.[0-9]+)+", text)
    assert found, f"no version in {text!r}"
    return found[0]


def _row(node: Node, case: Case, outcome: Outcome, reason: str) -> Row:
    return Row(
        node=node.name,
        cgroup=node.cgroup.value,
        driver=node.driver.value,
        runtime=case.runtime,
        shape=case.shape.name,
        outcome=outcome,
        reason=reason,
    )
