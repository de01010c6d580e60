# SPDX-License-Identifier: Apache-2.0
"""Who may command an agent, who may mount, and what nobody may fake."""

import base64
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.world import SYSTEM, VCS, World, eventually
from devicemount_testbed import pki
from devicemount_testbed.api import Api, ApiError, mount_path, pod_path

# Runs in the control plane's network namespace, as the operator would: prints the gRPC status.
CLIENT = """
import sys, grpc
from devicemount_agent_api.tls import AGENT_NAME
from devicemount_agent_api.v1 import agent_pb2, agent_pb2_grpc
address, ca, key, crt = sys.argv[1:]
read = lambda path: open(path, "rb").read() if path != "-" else None
credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(crt))
options = [("grpc.ssl_target_name_override", AGENT_NAME)]
with grpc.secure_channel(address, credentials, options) as channel:
    try:
        agent_pb2_grpc.AgentStub(channel).List(agent_pb2.ListRequest(), timeout=5)
        print("OK")
    except grpc.RpcError as error:
        print(error.code().name)
"""


def _secret(world: World, name: str, directory: Path) -> tuple[Path, Path, Path]:
    """Write a TLS secret of the deployment to files: key, certificate, authority."""
    data = world.api.call("GET", f"/api/v1/namespaces/{SYSTEM}/secrets/{name}")["data"]
    paths = []
    for key in ("tls.key", "tls.crt", "ca.crt"):
        path = directory / f"{name}-{key}"
        path.write_bytes(base64.b64decode(data[key]))
        paths.append(path)
    return paths[0], paths[1], paths[2]


def _ask(world: World, authority_path: Path, key: Path | str, certificate: Path | str) -> str:
    selector = "?labelSelector=app.kubernetes.io/component%3Dagent"
    pods = world.api.call("GET", pod_path(SYSTEM) + selector)["items"]
    address = f"{pods[0]['status']['podIP']}:9443"
    command = [sys.executable, "-c", CLIENT, address, str(authority_path), str(key)]
    done = subprocess.run(
        world.testbed.in_control_netns([*command, str(certificate)]),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.strip()


def test_only_the_operator_may_call_an_agent(world: World, tmp_path: Path) -> None:
    key, certificate, ca = _secret(world, "devicemount-operator-tls", tmp_path)
    agent_key, agent_certificate, _ = _secret(world, "devicemount-agent-tls", tmp_path)
    name = "devicemount-operator"
    subject = pki.Subject(common_name=name, usages=(pki.CLIENT,), dns_names=(name,))
    fake = pki.issue(pki.make_authority(tmp_path, "foreign"), subject=subject, name="fake")

    assert _ask(world, ca, key, certificate) == "OK"
    assert _ask(world, ca, "-", "-") == "UNAVAILABLE"
    assert _ask(world, ca, fake.key, fake.certificate) == "UNAVAILABLE"
    assert _ask(world, ca, agent_key, agent_certificate) in ("UNAVAILABLE", "PERMISSION_DENIED")


@pytest.mark.parametrize("account", ["devicemount-agent", "devicemount-plugin"])
def test_the_privileged_parts_have_no_rights_at_the_api_server(world: World, account: str) -> None:
    mine, everyone = (
        set(world.testbed.kubectl("auth", "can-i", "--list", *who).splitlines()[1:])
        for who in (
            (
                f"--as=system:serviceaccount:{SYSTEM}:{account}",
                "--as-group=system:serviceaccounts",
                "--as-group=system:authenticated",
            ),
            (
                "--as=system:serviceaccount:default:nobody",
                "--as-group=system:serviceaccounts",
                "--as-group=system:authenticated",
            ),
        )
    )
    assert mine == everyone


def _grant(world: World, user: str, resource: str, verbs: list[str]) -> None:
    group, _, kind = resource.rpartition("/")
    name = f"{user}-{kind}".replace("_", "-")
    rules = [{"apiGroups": [group], "resources": [kind.replace("_", "/")], "verbs": verbs}]
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{world.namespace}"
    world.api.call("POST", f"{rbac}/roles", {"metadata": {"name": name}, "rules": rules})
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    world.api.call("POST", f"{rbac}/rolebindings", binding)


def test_who_may_not_exec_into_the_target_may_not_mount(world: World) -> None:
    pod = world.pod("notebook")
    for user in ("eve", "bob"):
        _grant(world, user, "devicemount.io/devicemounts", ["create", "get", "delete"])
    _grant(world, "bob", "/pods_exec", ["create"])
    body = {
        "apiVersion": "devicemount.io/v1alpha1",
        "kind": "DeviceMount",
        "metadata": {"name": "taken"},
        "spec": {"target": {"podName": pod.name}, "resources": {"limits": {VCS: 1}}},
    }
    eve, bob = (Api(world.testbed.kubeconfig, impersonate=user) for user in ("eve", "bob"))
    with pytest.raises(ApiError) as refusal:
        eve.call("POST", mount_path(world.namespace), body)
    assert refusal.value.status == 403
    assert "pods/exec" in refusal.value.message
    assert pod.name in refusal.value.message
    bob.call("POST", mount_path(world.namespace), body)
    bob.delete(mount_path(world.namespace, "taken"))
    eventually(lambda: bob.get(mount_path(world.namespace, "taken")) is None, what="gone")


def test_a_shadow_pod_made_by_a_tenant_is_refused(world: World) -> None:
    _grant(world, "eve", "/pods", ["create", "get", "delete"])
    eve = Api(world.testbed.kubeconfig, impersonate="eve")
    body = {
        "metadata": {"name": "dm-00000000-00000000-0", "labels": {"devicemount.io/shadow": "x"}},
        "spec": {"containers": [{"name": "hold", "image": "localhost/busybox:1"}]},
    }
    with pytest.raises(ApiError) as refusal:
        eve.call("POST", pod_path(world.namespace), body)
    assert refusal.value.status in (403, 422)
    assert "devicemount" in refusal.value.message
