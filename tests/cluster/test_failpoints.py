# SPDX-License-Identifier: Apache-2.0
"""Killed at any step, the operator ends mounted or clean; access that existed goes on.

The agent's steps are test_cdi.py's, with a device that has nodes, mounts and links.
"""

import json

import pytest

from cluster.failing import armed, kills
from cluster.world import Pod, World, eventually
from devicemount_agent_api.failpoints import Failpoint

POLICY = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings"


@pytest.mark.parametrize(
    "point",
    [
        Failpoint.OPERATOR_AFTER_SHADOW_POD,
        Failpoint.OPERATOR_AFTER_GRANT,
    ],
    ids=lambda point: point.value,
)
def test_killed_while_mounting_it_ends_mounted(
    world: World, bystander: Pod, point: Failpoint
) -> None:
    pod = world.pod("notebook", node="node1")
    with armed(world, point):
        mount = world.mount("survives", pod).ready(deadline_s=60)
        assert pod.openable() == {path.rpartition("/")[2] for path in mount.files()}
        assert len(mount.shadow_pods()) == 1
    mount.delete()
    assert pod.openable() == set()


def test_killed_after_the_revocation_it_ends_clean(world: World, bystander: Pod) -> None:
    pod = world.pod("notebook", node="node1")
    with armed(world, Failpoint.OPERATOR_AFTER_REVOKE):
        mount = world.mount("survives", pod).ready()
        mount.delete(deadline_s=60)
        assert pod.openable() == set()
        assert world.shadow_pods()[0:] == [
            p
            for p in world.shadow_pods()
            if p["metadata"]["annotations"]["devicemount.io/mount"] == "bystander"
        ]


def test_deleted_before_its_finalizer_nothing_is_left(world: World) -> None:
    """Without the finalizer policy, the operator killed between shadow pod and finalizer."""
    name = "devicemount-finalizer"
    binding = world.api.call("GET", f"{POLICY}/{name}")
    pod, free = world.pod("notebook", node="node1"), world.free("node1")
    world.api.delete(f"{POLICY}/{name}")
    try:
        eventually(lambda: not _finalizers_at_admission(world), what="the policy is off")
        with armed(world, Failpoint.OPERATOR_AFTER_SHADOW_POD):
            mount = world.mount("early", pod)
            eventually(lambda: kills(world, "operator") > 0, what="the operator was killed")
            mount.delete()
            eventually(
                lambda: not world.shadow_pods(), what="the shadow pod is gone", deadline_s=60
            )
    finally:
        fresh = {k: binding[k] for k in ("apiVersion", "kind", "spec")}
        world.api.call("POST", POLICY, {**fresh, "metadata": {"name": name}})
        eventually(lambda: _finalizers_at_admission(world), what="the policy is on again")
    assert pod.openable() == set()
    assert world.free("node1") == free


def _finalizers_at_admission(world: World) -> bool:
    """Tell by a dry run whether the policy puts the finalizer on new objects."""
    body = {
        "apiVersion": "devicemount.io/v1alpha1",
        "kind": "DeviceMount",
        "metadata": {"name": "dry"},
        "spec": {"target": {"podName": "x"}, "resources": {"limits": {"example.com/x": 1}}},
    }
    path = f"/apis/devicemount.io/v1alpha1/namespaces/{world.namespace}/devicemounts?dryRun=All"
    return "devicemount.io/finalizer" in json.dumps(
        world.api.call("POST", path, body)["metadata"].get("finalizers", [])
    )
