# SPDX-License-Identifier: Apache-2.0
"""Shadow pods that others change, refuse or take away, before the real scheduler and kubelet."""

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.world import World, eventually
from devicemount_testbed.api import MERGE_PATCH, ApiError, Object, pod_path
from vendors.plugin import StandIn, refusing, registered

ADMISSION = "/apis/admissionregistration.k8s.io/v1"
KEPT = "example.com/kept"
INJECTED = f"""[
  JSONPatch{{op: 'add', path: '/metadata/finalizers', value: ['{KEPT}']}},
  JSONPatch{{op: 'add', path: '/spec/containers/-', value: Object.spec.containers{{
    name: 'proxy', image: 'localhost/busybox:1'}}}}
]"""


@contextmanager
def injecting(world: World) -> Iterator[None]:
    """Have a sidecar and a finalizer put into every shadow pod of the namespace."""
    name = f"{world.namespace}-inject"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
    here = {"matchLabels": {"kubernetes.io/metadata.name": world.namespace}}
    shadow = "has(object.metadata.labels) && 'devicemount.io/shadow' in object.metadata.labels"
    policy = {
        "matchConstraints": {"resourceRules": [{**rule, "operations": ["CREATE"]}]},
        "matchConditions": [{"name": "shadow", "expression": shadow}],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": INJECTED}}],
    }
    binding = {"policyName": name, "matchResources": {"namespaceSelector": here}}
    kinds = (("mutatingadmissionpolicies", policy), ("mutatingadmissionpolicybindings", binding))
    for kind, spec in kinds:
        world.api.call("POST", f"{ADMISSION}/{kind}", {"metadata": {"name": name}, "spec": spec})
    try:
        eventually(lambda: bool(_probed(world).get("finalizers")), what="the policy is in effect")
        yield
    finally:
        for kind, _ in reversed(kinds):
            world.api.delete(f"{ADMISSION}/{kind}/{name}")
        for pod in world.shadow_pods():
            _let_go(world, pod)


def _probed(world: World) -> Object:
    """Return the metadata that admission gives a pod like a shadow pod, without making one."""
    labels = {"devicemount.io/shadow": "probe"}
    spec = {"containers": [{"name": "hold", "image": "localhost/busybox:1"}]}
    body = {"metadata": {"name": "probe", "labels": labels}, "spec": spec}
    made: Object = world.api.call("POST", pod_path(world.namespace) + "?dryRun=All", body)
    return dict(made["metadata"])


def _let_go(world: World, pod: Object) -> None:
    path = pod_path(world.namespace, pod["metadata"]["name"])
    try:
        world.api.call("PATCH", path, {"metadata": {"finalizers": None}}, kind=MERGE_PATCH)
    except ApiError as error:
        assert error.status == 404


def test_sidecars_and_finalizers_of_others_neither_harm_nor_keep_the_device(world: World) -> None:
    node = "node2"
    free = world.free(node)
    pod = world.pod("notebook", node=node)
    with injecting(world):
        mount = world.mount("first", pod).ready()
        (shadow,) = mount.shadow_pods()
        assert [c["name"] for c in shadow["spec"]["containers"]] == ["hold", "proxy"]
        mount.delete(deadline_s=10)
        assert pod.openable() == set()
        (left,) = world.shadow_pods()
        assert left["metadata"]["finalizers"] == [KEPT]
        eventually(lambda: world.free(node) == free, what="the device is free")
        world.mount("second", pod, count=4).ready()
        assert len(pod.openable()) == 4


def test_a_plugin_that_refuses_again_and_again_leaves_no_pods_behind(world: World) -> None:
    resource = f"{world.namespace}.devicemount.test/card"
    text = "no card is free"
    with registered(world.testbed, "node1", StandIn(resource, ["a"], refusing(text))):
        eventually(lambda: world.free("node1", resource) == 1, what="the scheduler knows it")
        mount = world.mount("refused", world.pod("notebook"), resource=resource)
        message = mount.not_ready("Insufficient")
        assert "UnexpectedAdmissionError" in message
        assert text in message
        names: set[str] = set()

        def tried(times: int) -> bool:
            pods = mount.shadow_pods()
            assert len(pods) <= 1
            names.update(pod["metadata"]["uid"] for pod in pods)
            return len(names) >= times

        eventually(lambda: tried(2), what="it is tried again")
        mount.delete()
        assert world.shadow_pods() == []


def test_a_shadow_pod_that_the_kubelet_ends_is_made_again(world: World) -> None:
    """By its deadline, which ends as an eviction does: Failed, and not deleted."""
    pod = world.pod("notebook", node="node2")
    mount = world.mount("ended", pod).ready()
    before, (old,) = pod.identity(), mount.shadow_pods()
    path = pod_path(world.namespace, old["metadata"]["name"])
    world.api.until(path, _runs, deadline_s=30, what="the fence stands")
    with pod.holding(mount.files()[0]):
        world.api.call("PATCH", path, {"spec": {"activeDeadlineSeconds": 1}}, kind=MERGE_PATCH)
        eventually(lambda: bool(_losses(world)), what="it is ended")
        eventually(lambda: not pod.sh("pidof tail").split(), what="the holder is ended")
    mount.ready()
    (shadow,) = mount.shadow_pods()
    assert shadow["metadata"]["uid"] != old["metadata"]["uid"]
    assert pod.identity() == before
    assert len(pod.openable()) == 1


def _runs(pod: Object | None) -> bool:
    statuses = (pod or {}).get("status", {}).get("containerStatuses") or ()
    return any("running" in status["state"] for status in statuses)


def _losses(world: World) -> list[Object]:
    events = f"/api/v1/namespaces/{world.namespace}/events?fieldSelector=reason%3DReservationLost"
    return list(world.api.call("GET", events)["items"])
