# SPDX-License-Identifier: Apache-2.0
"""What is on the nodes and in the API, as sorted lines that can be compared.

What belongs to a pod that lives is left out, since pods come and go: so the remains of a pod that
is gone stand out. What a target container itself has is told apart.
"""

import hashlib
import json
import os
import re
from pathlib import Path

from cluster.world import Pod
from devicemount_agent.kernel import bpf
from devicemount_agent.kernel.files import closing
from devicemount_testbed.api import Api, Object
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.preflight import read_mounts, unified_root, v1_hierarchies
from devicemount_testbed.topology import CgroupDriver, CgroupVersion, Node

Lines = dict[str, list[str]]

DOMAIN = "testbed.devicemount.io/"  # of manifests/overlays/testbed/plugin-config.yaml

_ID = re.compile(r"[0-9a-f]{64}")
_NODE = {
    "mounts": "awk '{print $5}' /proc/self/mountinfo",
    "dev": "find /dev -xdev -exec stat -c '%n %F %t:%T %a %u:%g' {} +",
    "run": "find /run -xdev -path /run/containerd -prune -o -path /run/netns -prune "
    "-o -path /run/systemd -prune -o -print",
    "kubelet": "find /var/lib/kubelet -path '*/pods/*' -prune -o -name '*check*' -o -print",
    "cdi": "find /var/lib/cdi /etc/cdi 2>/dev/null || true",
    "processes": "for p in /proc/[0-9]*; do [ -e $p/exe ] || continue; "
    "echo $(grep -o 'kubepods.*' $p/cgroup | head -n 1) $(tr '\\0' ' ' < $p/cmdline); done",
}
_POD_CGROUP = re.compile(r"pod[0-9a-f]{8}[-_]")
_FILES = "find /dev /run -xdev -exec stat -c '%n %F %t:%T %a %u:%g' {} +"
_VOLATILE = re.compile(r"/run/netns/|/var/lib/kubelet/(?:pki|plugins_registry)/|^(?:sh|bash) -c ")
_NOT_OURS_TO_COMPARE = (
    "events",
    "events.events.k8s.io",
    "endpoints",  # deprecated, and follow slices
    "componentstatuses",
    "controllerrevisions.apps",
)


def of_node(testbed: Testbed, api: Api, node: Node) -> Lines:
    """Return what the node has that belongs to no living pod."""
    pods = api.call("GET", f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node.name}")["items"]
    uids = {pod["metadata"]["uid"] for pod in pods}
    alive = uids | {uid.replace("-", "_") for uid in uids}  # as systemd's units have them
    found = {name: _run(testbed, node, script) for name, script in _NODE.items()}
    ids = {
        match
        for line in found["processes"]
        if any(uid in line for uid in alive)
        for match in _ID.findall(line)
    }
    drop = alive | ids
    kept = {
        name: sorted(
            line
            for line in lines
            if not _VOLATILE.search(line) and not any(one in line for one in drop)
        )
        for name, lines in found.items()
    }
    trees = [root / node.cgroup_name for root in _hierarchies(node)]
    directories = (str(path) for tree in trees for path in tree.rglob("*pod*") if path.is_dir())
    directories = (path for path in directories if _POD_CGROUP.search(path))
    kept["cgroups"] = sorted(p for p in directories if not any(uid in p for uid in alive))
    return kept


def of_api(testbed: Testbed, api: Api, *, namespaces: tuple[str, ...]) -> Lines:
    """Return what objects there are, cluster-wide, in these namespaces and these themselves, and
    what they change.
    """
    kinds = testbed.kubectl("api-resources", "--verbs=list", "--output=name").split()
    wanted = ",".join(kind for kind in kinds if kind not in _NOT_OURS_TO_COMPARE)
    arguments = ("get", wanted, "--all-namespaces", "--ignore-not-found", "--output=json")
    items = json.loads(testbed.kubectl(*arguments))["items"]
    objects = []
    for item in items:
        meta = item["metadata"]
        namespace = meta.get("namespace", "")
        home = meta["name"] if item["kind"] == "Namespace" else namespace
        if item["kind"] == "PersistentVolume" or home not in ("", *namespaces):
            continue
        objects.append(f"{item['apiVersion']} {item['kind']} {namespace}/{meta['name']}")
    nodes = api.call("GET", "/api/v1/nodes")["items"]
    view = api.call("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/view")
    return {
        "objects": sorted(objects),
        "kinds": sorted(kinds),
        "labels": [json.dumps(n["metadata"]["labels"], sort_keys=True) for n in nodes],
        "offers": sorted(line for node in nodes for line in _offers(node)),
        "view": [json.dumps(view["rules"])],
    }


def _offers(node: Object) -> list[str]:
    """Return what the scheduler may give away of the devices that our plugin has.

    A Node goes on naming a resource whose plugin has ended. Not compared are those of other tests'
    plugins: when the kubelet forgets one, five minutes later, it may bring the former number back.
    """
    name, allocatable = node["metadata"]["name"], node["status"]["allocatable"]
    ours = {key: n for key, n in allocatable.items() if key.startswith(DOMAIN)}
    return [f"{name} {key}: {n}" for key, n in ours.items() if n != "0"]


def of_container(testbed: Testbed, pod: Pod) -> Lines:
    """Return what a running container has: files, mounts, and the filter of its cgroup."""
    node = next(each for each in testbed.nodes if each.name == pod.node)
    return {
        "identity": [str(pod.identity())],
        "files": sorted(pod.sh(_FILES).splitlines()),
        "mounts": pod.sh("cut -d' ' -f4- /proc/self/mountinfo").splitlines(),
        "filter": filters_of(node, pod.uid),
    }


def _run(testbed: Testbed, node: Node, script: str) -> list[str]:
    done = testbed.exec(node, ["sh", "-c", script])
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _hierarchies(node: Node) -> list[Path]:
    match node.cgroup:
        case CgroupVersion.V1:
            return [v1_hierarchies(read_mounts())["devices"]]
        case CgroupVersion.V2:
            return [unified_root()]


def filters_of(node: Node, pod_uid: str) -> list[str]:
    """Return the device filters of the pod's cgroups: rules on v1, programs on v2."""
    (root,) = _hierarchies(node)
    found = []
    uid = pod_uid.replace("-", "_") if node.driver is CgroupDriver.SYSTEMD else pod_uid
    for path in sorted((root / node.cgroup_name).rglob(f"*pod{uid}*/**/")):
        match node.cgroup:
            case CgroupVersion.V1:
                rules = sorted((path / "devices.list").read_text().splitlines())
                found.append(f"{path.name}: {' '.join(rules)}")
            case CgroupVersion.V2:
                found.append(f"{path.name}: {' '.join(_programs(path))}")
    return found


def _programs(cgroup: Path) -> list[str]:
    """Return a digest of each device program that is attached, whatever its number."""
    digests = []
    with closing(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)) as cgroup_fd:
        for program_id in bpf.prog_query(cgroup_fd).program_ids:
            with closing(bpf.prog_get_fd_by_id(program_id)) as program_fd:
                code = bpf.prog_info(program_fd).instructions
                digests.append(hashlib.sha256(code).hexdigest()[:12])
    return digests
