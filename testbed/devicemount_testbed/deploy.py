# SPDX-License-Identifier: Apache-2.0
"""Deploys a checkout: its images and its manifests.

Each pod template is stamped with the digest of its images before it is applied, so that
Kubernetes itself restarts what changed and nothing else.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from devicemount_testbed.cluster import Testbed
from devicemount_testbed.errors import CommandFailed, RolloutFailed
from devicemount_testbed.images import build_images
from devicemount_testbed.layout import Layout
from devicemount_testbed.loading import load_everywhere
from devicemount_testbed.report import say, took

NAMESPACE = "devicemount-system"
OVERLAY = "manifests/overlays/testbed"
OPT_IN = "devicemount.io/enabled=true"
STAMP = "testbed.devicemount.io/inputs"
ROLLOUT_S = 120
WORKLOADS = ("DaemonSet", "Deployment")
FIRST = ("Namespace", "CustomResourceDefinition")  # what the rest lives in
Manifest = dict[str, Any]  # the JSON boundary: what kubectl renders and takes


def deploy(layout: Layout, repository: Path, *, overlay: str = OVERLAY) -> None:
    """Make the cluster run this checkout; quick when nothing changed."""
    began = time.monotonic()
    testbed = Testbed.from_record(layout)
    archives = build_images(layout, repository)
    digests = load_everywhere(testbed, list(archives.values()))
    inputs = {reference: digests[archive] for reference, archive in archives.items()}
    manifests = render(testbed, repository / overlay)
    workloads = [m for m in manifests if m["kind"] in WORKLOADS]
    for workload in workloads:
        stamp(workload, inputs)
    _apply(testbed, manifests=[m for m in manifests if m["kind"] in FIRST])
    _apply(testbed, manifests=[m for m in manifests if m["kind"] not in FIRST])
    testbed.kubectl("label", "nodes", "--all", "--overwrite", OPT_IN)
    for workload in workloads:
        _await_rollout(testbed, workload)
    say(f"deployed in {took(began)}")


def render(testbed: Testbed, overlay: Path) -> list[Manifest]:
    """Return what an overlay would apply."""
    rendered = testbed.kubectl("kustomize", str(overlay))
    return [m for m in yaml.safe_load_all(rendered) if m]


def stamp(workload: Manifest, inputs: Mapping[str, str]) -> None:
    """Note in the pod template the digest of every image that it uses."""
    template = workload["spec"]["template"]
    spec = template["spec"]
    containers = [*spec.get("initContainers", ()), *spec["containers"]]
    used = {container["image"] for container in containers}
    annotations = template.setdefault("metadata", {}).setdefault("annotations", {})
    annotations[STAMP] = _hash([f"{name}={inputs[name]}" for name in sorted(used & set(inputs))])


def _apply(testbed: Testbed, *, manifests: Sequence[Manifest]) -> None:
    items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    out = testbed.kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager=devicemount-testbed",
        "--filename=-",
        input=json.dumps(items),
    )
    say(f"applied {len(out.splitlines())} objects")


def _await_rollout(testbed: Testbed, workload: Manifest) -> None:
    name = f"{workload['kind']}/{workload['metadata']['name']}".lower()
    began = time.monotonic()
    namespace = f"--namespace={NAMESPACE}"
    try:
        testbed.kubectl("rollout", "status", namespace, name, f"--timeout={ROLLOUT_S}s")
    except CommandFailed as error:
        pods = testbed.kubectl("get", "pods", namespace, "--output=wide")
        log = testbed.try_kubectl("logs", namespace, name, "--all-containers", "--tail=20")
        raise RolloutFailed(f"{name} is not ready: {error}\n{pods}\n{log}") from error
    say(f"{name} ready after {took(began)}")


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
