# SPDX-License-Identifier: Apache-2.0
"""What the manifests promise of the parts as they run: how little each may do and holds."""

import secrets
from collections.abc import Iterator

import pytest

from cluster.world import SYSTEM
from devicemount_testbed.api import Api, Object, pod_path
from devicemount_testbed.cluster import Testbed

COMPONENTS = ("operator", "agent", "plugin")
PACKAGES = {
    "operator": {"devicemount_agent_api", "devicemount_operator"},
    "agent": {
        "devicemount_agent",
        "devicemount_agent_api",
        "devicemount_node_api",
        "devicemount_plugin",
    },
}
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"
AGENT_MOUNTS = {
    "/dev": "ro",
    "/etc/cdi": "ro",
    "/etc/devicemount/profiles": "ro",
    "/etc/devicemount/tls": "ro",
    "/run/containerd": "ro",
    "/run/devicemount": "rw",
    "/run/devicemount-plugin": "ro",
    "/sys/fs/cgroup": "rw",
    "/var/lib/kubelet/device-plugins": "ro",
    "/var/lib/kubelet/pod-resources": "ro",
    "/var/run/cdi": "ro",
}


@pytest.fixture(scope="module")
def parts(api: Api) -> dict[str, Object]:
    """One running pod of each component."""
    path = f"{pod_path(SYSTEM)}?labelSelector=app.kubernetes.io/component%3D"
    return {name: api.call("GET", path + name)["items"][0] for name in COMPONENTS}


def run(testbed: Testbed, pod: Object, *argv: str) -> str:
    return testbed.kubectl("exec", "-n", SYSTEM, pod["metadata"]["name"], "--", *argv)


@pytest.fixture
def restricted(api: Api) -> Iterator[str]:
    """A namespace that takes only pods that pass Pod Security `restricted`."""
    name = f"test-{secrets.token_hex(4)}"
    path = api.make_namespace(name, labels={"pod-security.kubernetes.io/enforce": "restricted"})
    yield name
    api.delete(path)


def test_the_operator_passes_pod_security_restricted(api: Api, restricted: str) -> None:
    path = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/devicemount-operator"
    spec = api.call("GET", path)["spec"]["template"]["spec"]
    body = {"metadata": {"name": "operator"}, "spec": {**spec, "serviceAccountName": "default"}}
    api.call("POST", f"{pod_path(restricted)}?dryRun=All", body)


@pytest.mark.parametrize("component", ["operator", "agent"])
def test_an_image_holds_only_its_own_packages(
    testbed: Testbed, parts: dict[str, Object], component: str
) -> None:
    listed = run(testbed, parts[component], "ls", "/opt/devicemount").split()
    assert {name for name in listed if name.startswith("devicemount_")} == PACKAGES[component]
    assert "Apache License" in run(testbed, parts[component], "cat", "/LICENSE")


def test_the_images_need_no_compiler(testbed: Testbed, parts: dict[str, Object]) -> None:
    for component in ("operator", "agent"):
        script = "command -v gcc || echo none"
        assert run(testbed, parts[component], "sh", "-c", script).strip() == "none"


@pytest.mark.parametrize("component", ["agent", "plugin"])
def test_agent_and_plugin_have_no_token(
    testbed: Testbed, parts: dict[str, Object], component: str
) -> None:
    script = f"if [ -e {TOKEN} ]; then echo there; else echo none; fi"
    assert run(testbed, parts[component], "sh", "-c", script).strip() == "none"


def test_the_plugin_has_no_capability(testbed: Testbed, parts: dict[str, Object]) -> None:
    status = run(testbed, parts["plugin"], "cat", "/proc/1/status")
    said = dict(line.split(":\t", 1) for line in status.splitlines())
    assert {value for name, value in said.items() if name.startswith("Cap")} == {"0" * 16}
    assert said["NoNewPrivs"] == "1"
    assert said["Seccomp"] == "2", "a filter of system calls: the runtime's default"


def test_the_agent_mounts_what_it_needs_and_no_more(parts: dict[str, Object]) -> None:
    spec = parts["agent"]["spec"]
    mounts = spec["containers"][0]["volumeMounts"]
    allowed = {m["mountPath"]: "ro" if m.get("readOnly") else "rw" for m in mounts}
    assert allowed == AGENT_MOUNTS
