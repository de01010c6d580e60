# SPDX-License-Identifier: Apache-2.0
"""What the admission policies refuse, and what they must let pass.

The shadow pod here is made by hand by a user with the operator's verb; what may pass is tried dry.
"""

import secrets
from collections.abc import Callable, Iterator

import pytest

from cluster.world import VCS, eventually
from devicemount_testbed.api import MERGE_PATCH, Api, ApiError, Object, mount_path, pod_path
from devicemount_testbed.cluster import Testbed

SHADOW = "dm-00000000-00000000-0"
DRY = "?dryRun=All"
FORBIDDEN, INVALID = 403, 422
RBAC = "/apis/rbac.authorization.k8s.io/v1"

# user -> (API group, resource, verbs[, name]); every user may read and write DeviceMounts and pods
RIGHTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "eve": (),
    "bob": (("", "pods/exec", "create"),),
    "ann": (("", "pods/exec", "create", "notebook"),),
    "operator": (("devicemount.io", "shadowpods", "manage"),),
    "drainer": (),  # may patch nodes as well
}
EVERYONE: tuple[tuple[str, ...], ...] = (
    ("devicemount.io", "devicemounts", "*"),
    ("", "pods", "*"),
    ("", "pods/eviction", "create"),
    ("", "pods/ephemeralcontainers", "patch"),
)


class Tenancy:
    """A namespace with users of different rights."""

    def __init__(self, testbed: Testbed, admin: Api, namespace: str) -> None:
        self.admin = admin
        self.namespace = namespace
        self._apis = {
            user: Api(testbed.kubeconfig, impersonate=f"{user}-{namespace}") for user in RIGHTS
        }

    def by(self, user: str) -> Api:
        return self._apis[user]

    def pods(self, name: str = "", more: str = "") -> str:
        return pod_path(self.namespace, name) + more

    def mounts(self, name: str = "", more: str = "") -> str:
        return mount_path(self.namespace, name) + more

    def grant_rights(self) -> None:
        rbac = f"{RBAC}/namespaces/{self.namespace}"
        for user, rights in RIGHTS.items():
            rules = [_rule(right) for right in (*EVERYONE, *rights)]
            body: Object = {"metadata": {"name": user}, "rules": rules}
            self.admin.call("POST", f"{rbac}/roles", body)
            self.admin.call("POST", f"{rbac}/rolebindings", self._binding(user, "Role", user))
        drain = f"drain-{self.namespace}"
        rule = _rule(("", "nodes", "patch"))
        body = {"metadata": {"name": drain}, "rules": [rule]}
        self.admin.call("POST", f"{RBAC}/clusterroles", body)
        binding = self._binding("drainer", "ClusterRole", drain)
        self.admin.call("POST", f"{RBAC}/clusterrolebindings", binding)
        for user, rights in RIGHTS.items():
            for right in (*EVERYONE, *rights):
                eventually(lambda u=user, r=right: self._may(u, r), what=f"{user} has {right}")
        eventually(lambda: self._may("drainer", ("", "nodes", "patch")), what="drainer drains")

    def withdraw_cluster_rights(self) -> None:
        for kind in ("clusterrolebindings", "clusterroles"):
            self.admin.delete(f"{RBAC}/{kind}/drain-{self.namespace}")

    def _binding(self, user: str, kind: str, role: str) -> Object:
        return {
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [
                {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "User",
                    "name": f"{user}-{self.namespace}",
                }
            ],
        }

    def _may(self, user: str, right: tuple[str, ...]) -> bool:
        group, resource, verb, *name = right
        kind, _, subresource = resource.partition("/")
        attributes = {
            "namespace": "" if kind == "nodes" else self.namespace,
            "group": group,
            "resource": kind,
            "subresource": subresource,
            "verb": verb,
            "name": name[0] if name else "",
        }
        review = {"spec": {"user": f"{user}-{self.namespace}", "resourceAttributes": attributes}}
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        return bool(self.admin.call("POST", path, review)["status"]["allowed"])


def _rule(right: tuple[str, ...]) -> Object:
    group, resource, verb, *names = right
    return {
        "apiGroups": [group],
        "resources": [resource],
        "verbs": [verb],
        "resourceNames": names,
    }


def device_mount(pod: str) -> Object:
    return {
        "apiVersion": "devicemount.io/v1alpha1",
        "kind": "DeviceMount",
        "metadata": {"name": "wanted"},
        "spec": {"target": {"podName": pod}, "resources": {"limits": {VCS: 1}}},
    }


def pod(name: str, **metadata: object) -> Object:
    spec: Object = {
        "nodeName": "node1",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 60,
        "containers": [{"name": "hold", "image": "localhost/busybox:1"}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **metadata}, "spec": spec}


def shadow_pod(name: str = SHADOW) -> Object:
    labels = {"devicemount.io/shadow": "none"}
    return pod(name, labels=labels, annotations={"devicemount.io/target-uid": "none"})


def is_running(found: Object | None) -> bool:
    statuses = (found or {}).get("status", {}).get("containerStatuses") or []
    return bool(statuses) and all("running" in status["state"] for status in statuses)


@pytest.fixture(scope="module")
def tenancy(testbed: Testbed, api: Api) -> Iterator[Tenancy]:
    namespace = f"test-{secrets.token_hex(4)}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    made = Tenancy(testbed, api, namespace)
    try:
        made.grant_rights()
        api.call("POST", made.pods(), pod("plain"))
        made.by("operator").call("POST", made.pods(), shadow_pod())
        api.until(made.pods(SHADOW), is_running, deadline_s=60, what="running")
        yield made
    finally:
        for name in ("plain", SHADOW):
            api.delete(made.pods(name), {"gracePeriodSeconds": 0})
        made.withdraw_cluster_rights()
        api.delete(f"/api/v1/namespaces/{namespace}")


def refusal(attempt: Callable[[], object]) -> str:
    """Return why the policy refuses; fail if it does not."""
    with pytest.raises(ApiError) as caught:
        attempt()
    assert caught.value.status in (FORBIDDEN, INVALID), caught.value
    assert "ValidatingAdmissionPolicy 'devicemount-" in caught.value.message
    return caught.value.message


# Who may mount


@pytest.mark.parametrize(
    ("user", "target"),
    [
        pytest.param("eve", "notebook", id="without the right to exec"),
        pytest.param("ann", "other", id="with the right for another pod"),
    ],
)
def test_a_mount_is_refused(tenancy: Tenancy, user: str, target: str) -> None:
    path = tenancy.mounts(more=DRY)
    message = refusal(lambda: tenancy.by(user).call("POST", path, device_mount(target)))
    assert (
        f"to give devices to pod {target} you need the right to create pods/exec on it "
        f"in namespace {tenancy.namespace}"
    ) in message


@pytest.mark.parametrize(
    ("user", "target"),
    [
        pytest.param("bob", "other", id="with the right for all pods"),
        pytest.param("ann", "notebook", id="with the right for this pod"),
    ],
)
def test_a_mount_passes_and_has_the_finalizer(tenancy: Tenancy, user: str, target: str) -> None:
    made = tenancy.by(user).call("POST", tenancy.mounts(more=DRY), device_mount(target))
    assert made["metadata"]["finalizers"] == ["devicemount.io/finalizer"]


def test_a_change_of_spec_asks_again_and_of_metadata_does_not(tenancy: Tenancy) -> None:
    tenancy.by("bob").call("POST", tenancy.mounts(), device_mount("absent"))
    path, eve = tenancy.mounts("wanted", DRY), tenancy.by("eve")
    try:
        patch: Object = {"spec": {"suspend": True}}
        assert "pods/exec" in refusal(lambda: eve.call("PATCH", path, patch, kind=MERGE_PATCH))
        patched = eve.call("PATCH", path, {"metadata": {"labels": {"a": "b"}}}, kind=MERGE_PATCH)
        assert patched["metadata"]["labels"] == {"a": "b"}
        patch = {"metadata": {"finalizers": None}}  # what `kubectl replace` does
        kept = eve.call("PATCH", path, patch, kind=MERGE_PATCH)
        assert kept["metadata"]["finalizers"] == ["devicemount.io/finalizer"]
    finally:
        tenancy.admin.delete(tenancy.mounts("wanted"))
        gone = tenancy.mounts("wanted")
        tenancy.admin.until(gone, lambda found: found is None, deadline_s=30, what="gone")


# Shadow pods


def test_only_the_operator_makes_shadow_pods(tenancy: Tenancy) -> None:
    body = shadow_pod("dm-00000000-00000000-1")
    path = tenancy.pods(more=DRY)
    assert "only devicemount creates pods" in refusal(
        lambda: tenancy.by("eve").call("POST", path, body)
    )
    tenancy.by("operator").call("POST", path, body)


FOREIGN_OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "1"}
METADATA = "label, annotations and owners are devicemount's"
PROCESS = "what runs in a shadow pod, and for how long, is devicemount's"


@pytest.mark.parametrize(
    ("name", "patch", "reason"),
    [
        pytest.param(
            SHADOW,
            {"metadata": {"labels": {"devicemount.io/shadow": None}}},
            METADATA,
            id="taking the label away",
        ),
        pytest.param(
            SHADOW,
            {"metadata": {"labels": {"devicemount.io/shadow": "other"}}},
            METADATA,
            id="changing the label",
        ),
        pytest.param(
            "plain",
            {"metadata": {"labels": {"devicemount.io/shadow": "none"}}},
            METADATA,
            id="labelling another pod",
        ),
        pytest.param(
            SHADOW,
            {"metadata": {"annotations": {"devicemount.io/target-uid": "other"}}},
            METADATA,
            id="changing the target",
        ),
        pytest.param(
            SHADOW,
            {"metadata": {"annotations": {"devicemount.io/mount": "other"}}},
            METADATA,
            id="naming another mount",
        ),
        pytest.param(
            SHADOW, {"metadata": {"ownerReferences": [FOREIGN_OWNER]}}, METADATA, id="other owners"
        ),
        pytest.param(
            SHADOW,
            {"spec": {"containers": [{"name": "hold", "image": "localhost/pause:1"}]}},
            PROCESS,
            id="another image",
        ),
        pytest.param(SHADOW, {"spec": {"activeDeadlineSeconds": 1}}, PROCESS, id="a deadline"),
    ],
)
def test_a_change_is_refused(tenancy: Tenancy, name: str, patch: Object, reason: str) -> None:
    path = tenancy.pods(name, DRY)
    message = refusal(lambda: tenancy.by("eve").call("PATCH", path, patch, kind=MERGE_PATCH))
    assert reason in message


def test_no_other_program_joins_a_shadow_pod(tenancy: Tenancy) -> None:
    container = {"name": "shell", "image": "localhost/busybox:1", "targetContainerName": "hold"}
    patch: Object = {"spec": {"ephemeralContainers": [container]}}
    path = tenancy.pods(f"{SHADOW}/ephemeralcontainers", DRY)
    eve = tenancy.by("eve")
    assert PROCESS in refusal(lambda: eve.call("PATCH", path, patch, kind=MERGE_PATCH))


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param(
            {"metadata": {"annotations": {"k8s.ovn.org/pod-networks": "{}"}}},
            id="a network plugin's annotation",
        ),
        pytest.param({"metadata": {"labels": {"queue": "a"}}}, id="a scheduler's label"),
        pytest.param({"spec": {"tolerations": [{"operator": "Exists"}]}}, id="another toleration"),
    ],
)
def test_what_networks_and_schedulers_add_passes(tenancy: Tenancy, patch: Object) -> None:
    if "spec" in patch:  # a merge patch replaces the list: what is there must stay
        there = tenancy.admin.call("GET", tenancy.pods(SHADOW))["spec"].get("tolerations", [])
        patch = {"spec": {"tolerations": [*there, *patch["spec"]["tolerations"]]}}
    tenancy.by("eve").call("PATCH", tenancy.pods(SHADOW, DRY), patch, kind=MERGE_PATCH)


def dry_deletion(grace_s: int) -> Object:
    """DeleteOptions for a request's body, which makes the server ignore the query's."""
    return {"gracePeriodSeconds": grace_s, "dryRun": ["All"]}


def eviction(name: str, grace_s: int) -> Object:
    return {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name},
        "deleteOptions": dry_deletion(grace_s),
    }


@pytest.mark.parametrize("grace_s", [0, 1, 59])
def test_less_grace_than_the_fence_is_refused(tenancy: Tenancy, grace_s: int) -> None:
    eve, options = tenancy.by("eve"), dry_deletion(grace_s)
    collection = tenancy.pods(more="?labelSelector=devicemount.io/shadow")
    for attempt in (
        lambda: eve.call("DELETE", tenancy.pods(SHADOW), options),
        lambda: eve.call("DELETE", collection, options),
        lambda: eve.call("POST", tenancy.pods(f"{SHADOW}/eviction"), eviction(SHADOW, grace_s)),
    ):
        assert "needs" in refusal(attempt)


def test_whoever_may_patch_nodes_may_drain_with_any_grace(tenancy: Tenancy) -> None:
    drainer = tenancy.by("drainer")
    drainer.call("DELETE", tenancy.pods(SHADOW), dry_deletion(0))
    drainer.call("POST", tenancy.pods(f"{SHADOW}/eviction"), eviction(SHADOW, 0))


def test_pods_of_others_are_no_concern_of_the_policies(tenancy: Tenancy) -> None:
    eve = tenancy.by("eve")
    eve.call("POST", tenancy.pods(more=DRY), pod("dm-worker"))
    eve.call("DELETE", tenancy.pods("plain"), dry_deletion(0))
    eve.call("POST", tenancy.pods("plain/eviction"), eviction("plain", 0))


def test_a_plain_deletion_has_the_full_grace_and_cannot_be_shortened(tenancy: Tenancy) -> None:
    name, eve = "dm-00000000-00000000-2", tenancy.by("eve")
    tenancy.by("operator").call("POST", tenancy.pods(), shadow_pod(name))
    try:
        tenancy.admin.until(tenancy.pods(name), is_running, deadline_s=60, what="running")
        deleted = eve.call("DELETE", tenancy.pods(name))
        assert deleted["metadata"]["deletionGracePeriodSeconds"] == 60
        options = {"gracePeriodSeconds": 0}
        assert "needs" in refusal(lambda: eve.call("DELETE", tenancy.pods(name), options))
    finally:
        tenancy.admin.delete(tenancy.pods(name), {"gracePeriodSeconds": 0})
