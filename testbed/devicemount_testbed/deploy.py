# SPDX-License-Identifier: Apache-2.0
"""Deploys a checkout: its images, the TLS secrets that its overlay expects, its manifests.

Each pod template is stamped with the digest of its images and secrets before it is applied,
so that Kubernetes itself restarts what changed and nothing else.
"""

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from devicemount_testbed import pki
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.errors import CommandFailed, RolloutFailed
from devicemount_testbed.images import build_images
from devicemount_testbed.layout import Layout
from devicemount_testbed.loading import load_everywhere
from devicemount_testbed.report import say, took

NAMESPACE = "devicemount-system"
OVERLAY = "manifests/overlays/testbed"
STAMP = "testbed.devicemount.io/inputs"
ROLLOUT_S = 120
WORKLOADS = ("DaemonSet", "Deployment")
FIRST = ("Namespace", "CustomResourceDefinition")  # what the rest lives in
AUTHORITY = "devicemount-ca"
SUBJECTS = {
    "devicemount-operator-tls": pki.Subject(
        common_name="devicemount-operator",
        usages=(pki.CLIENT,),
        dns_names=("devicemount-operator",),
    ),
    "devicemount-agent-tls": pki.Subject(
        common_name="devicemount-agent", usages=(pki.SERVER,), dns_names=("devicemount-agent",)
    ),
}
Manifest = dict[str, Any]  # the JSON boundary: what kubectl renders and takes


def deploy(layout: Layout, repository: Path) -> None:
    """Make the cluster run this checkout; quick when nothing changed."""
    began = time.monotonic()
    testbed = Testbed.from_record(layout)
    archives = build_images(layout, repository)
    digests = load_everywhere(testbed, list(archives.values()))
    inputs = {reference: digests[archive] for reference, archive in archives.items()}
    secrets = _tls_secrets(layout)
    inputs.update({s["metadata"]["name"]: _hash([json.dumps(s)]) for s in secrets})
    rendered = testbed.kubectl("kustomize", str(repository / OVERLAY))
    manifests = [m for m in yaml.safe_load_all(rendered) if m]
    workloads = [m for m in manifests if m["kind"] in WORKLOADS]
    for workload in workloads:
        stamp(workload, inputs)
    _apply(testbed, manifests=[m for m in manifests if m["kind"] in FIRST] + secrets)
    _apply(testbed, manifests=[m for m in manifests if m["kind"] not in FIRST])
    for workload in workloads:
        _await_rollout(testbed, workload)
    say(f"deployed in {took(began)}")


def stamp(workload: Manifest, inputs: Mapping[str, str]) -> None:
    """Note in the pod template the digest of every image and secret that it uses."""
    template = workload["spec"]["template"]
    spec = template["spec"]
    containers = [*spec.get("initContainers", ()), *spec["containers"]]
    used = {container["image"] for container in containers}
    used |= {v["secret"]["secretName"] for v in spec.get("volumes", ()) if "secret" in v}
    annotations = template.setdefault("metadata", {}).setdefault("annotations", {})
    annotations[STAMP] = _hash([f"{name}={inputs[name]}" for name in sorted(used & set(inputs))])


def _tls_secrets(layout: Layout) -> list[Manifest]:
    """Make the certificates of operator and agent once for each run; return their Secrets."""
    authority = pki.Pair.at(layout.pki, AUTHORITY)
    if not authority.certificate.exists():
        pki.make_authority(layout.pki, AUTHORITY)
    secrets = []
    for name, subject in SUBJECTS.items():
        pair = pki.Pair.at(layout.pki, name)
        if not pair.certificate.exists():
            pki.issue(authority, subject=subject, name=name)
        files = {
            "tls.crt": pair.certificate,
            "tls.key": pair.key,
            "ca.crt": authority.certificate,
        }
        secrets.append(_secret(name, files))
    return secrets


def _secret(name: str, files: Mapping[str, Path]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "data": {key: base64.b64encode(p.read_bytes()).decode() for key, p in files.items()},
    }


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
