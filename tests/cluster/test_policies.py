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
RELEASE = "devicemount.io/release-without-proof"
RBAC = "/apis/rbac.authorization.k8s.io/v1"

# user -> (API group, resource, verbs[, name]); every user may read and write DeviceMounts and pods
RIGHTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "eve": (),
    "bob": (("", "pods/exec", "create"),),
    "ann": (("", "pods/exec", "create", "notebook"),),
    "operator": (("devicemount.io", "shadowpods", "manage"),),
    "drainer": (),
    "warden": (),
}
CLUSTER_RIGHTS: dict[str, tuple[str, ...]] = {
    "drainer": ("", "nodes", "patch"),
    "warden": ("devicemount.io", "devicemounts", "release"),
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
        for user, right in CLUSTER_RIGHTS.items():
            name = f"{user}-{self.namespace}"
            body = {"metadata": {"name": name}, "rules": [_rule(right)]}
            self.admin.call("POST", f"{RBAC}/clusterroles", body)
            binding = self._binding(user, "ClusterRole", name)
            self.admin.call("POST", f"{RBAC}/clusterrolebindings", binding)
        for user, rights in RIGHTS.items():
            for right in (*EVERYONE, *rights):
                eventually(lambda u=user, r=right: self._may(u, r), what=f"{user} has {right}")
        for user, right in CLUSTER_RIGHTS.items():
            eventually(
                lambda u=user, r=right: self._may(u, r, namespace=""),
                what=f"{user} has {right}",
            )

    def withdraw_cluster_rights(self) -> None:
        for user in CLUSTER_RIGHTS:
            for kind in ("clusterrolebindings", "clusterroles"):
                self.admin.delete(f"{RBAC}/{kind}/{user}-{self.namespace}")

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

    def _may(self, user: str, right: tuple[str, ...], *, namespace: str | None = None) -> bool:
        group, resource, verb, *name = right
        kind, _, subresource = resource.partition("/")
        attributes = {
            "namespace": self.namespace if namespace is None else namespace,
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


def selecting(**labels: str) -> Object:
    body = device_mount("")
    return body | {"spec": body["spec"] | {"target": {"selector": {"matchLabels": labels}}}}


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
    api.make_namespace(namespace)
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


@pytest.mark.parametrize("user", ["eve", "ann"], ids=["without any", "with the right for one pod"])
def test_a_selector_asks_for_the_right_on_every_pod(tenancy: Tenancy, user: str) -> None:
    path, body = tenancy.mounts(more=DRY), selecting(app="web")
    message = refusal(lambda: tenancy.by(user).call("POST", path, body))
    assert (
        "to give devices to the pods that a selector matches you need the right to create "
        f"pods/exec on every pod of namespace {tenancy.namespace}"
    ) in message
    made = tenancy.by("bob").call("POST", path, body)
    assert made["spec"]["target"] == {"selector": {"matchLabels": {"app": "web"}}}


def test_neither_does_an_edit_of_the_target_get_around_it(tenancy: Tenancy) -> None:
    """Ann may exec into one pod, and into no other: she cannot point at others afterwards."""
    ann = tenancy.by("ann")
    ann.call("POST", tenancy.mounts(), device_mount("notebook"))
    path = tenancy.mounts("wanted", DRY)
    every: Object = {"podName": None, "selector": {"matchLabels": {"app": "web"}}}
    try:
        for target in ({"podName": "other"}, every):
            patch: Object = {"spec": {"target": target}}
            said = refusal(lambda patch=patch: ann.call("PATCH", path, patch, kind=MERGE_PATCH))
            assert "pods/exec" in said
            tenancy.by("bob").call("PATCH", path, patch, kind=MERGE_PATCH)
    finally:
        tenancy.admin.delete(tenancy.mounts("wanted"))
        gone = tenancy.mounts("wanted")
        tenancy.admin.until(gone, lambda found: found is None, deadline_s=30, what="gone")


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


def test_a_release_without_proof_asks_for_a_right_in_the_whole_cluster(tenancy: Tenancy) -> None:
    """Bob may do whatever he likes with DeviceMounts, in his namespace."""
    said: Object = {"metadata": {"annotations": {RELEASE: "the node burnt down"}}}
    body = device_mount("absent")
    annotated = {**body, "metadata": {**body["metadata"], **said["metadata"]}}
    bob, warden, path = tenancy.by("bob"), tenancy.by("warden"), tenancy.mounts("wanted", DRY)
    new = tenancy.mounts(more=DRY)
    assert "(ClusterRole devicemount-release)" in refusal(lambda: bob.call("POST", new, annotated))
    bob.call("POST", tenancy.mounts(), body)
    try:
        assert "release" in refusal(lambda: bob.call("PATCH", path, said, kind=MERGE_PATCH))
        warden.call("PATCH", tenancy.mounts("wanted"), said, kind=MERGE_PATCH)
        label: Object = {"metadata": {"labels": {"a": "b"}}}
        bob.call("PATCH", path, label, kind=MERGE_PATCH)
        changed: Object = {"metadata": {"annotations": {RELEASE: "for another reason"}}}
        refusal(lambda: bob.call("PATCH", path, changed, kind=MERGE_PATCH))
        taken_back: Object = {"metadata": {"annotations": {RELEASE: None}}}
        bob.call("PATCH", path, taken_back, kind=MERGE_PATCH)
    finally:
        tenancy.admin.delete(tenancy.mounts("wanted"))
        gone = tenancy.mounts("wanted")
        tenancy.admin.until(gone, lambda found: found is None, deadline_s=30, what="gone")


MANY: dict[str, Object] = {
    "labels": {"labels": {f"l{n}": "x" for n in range(65)}},
    "finalizers": {"finalizers": [f"example.com/f{n}" for n in range(17)]},
    "owners": {
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": f"o{n}", "uid": f"u{n}"}
            for n in range(17)
        ]
    },
}


@pytest.mark.parametrize("more", [pytest.param(more, id=name) for name, more in MANY.items()])
def test_metadata_leaves_room_for_a_status(tenancy: Tenancy, more: Object) -> None:
    body, path = device_mount("notebook"), tenancy.mounts(more=DRY)
    many = {**body, "metadata": {**body["metadata"], **more}}
    assert "at most" in refusal(lambda: tenancy.by("bob").call("POST", path, many))
    few = {
        name: dict(list(v.items())[1:]) if isinstance(v, dict) else v[:15]
        for name, v in more.items()
    }
    tenancy.by("bob").call("POST", path, {**body, "metadata": {**body["metadata"], **few}})


# Shadow pods


def test_only_the_operator_makes_shadow_pods(tenancy: Tenancy) -> None:
    body = shadow_pod("dm-00000000-00000000-1")
    path = tenancy.pods(more=DRY)
    assert "only devicemount creates pods" in refusal(
        lambda: tenancy.by("eve").call("POST", path, body)
    )
    tenancy.by("operator").call("POST", path, body)


def test_no_controller_makes_them_on_behalf_of_a_tenant(testbed: Testbed, tenancy: Tenancy) -> None:
    """Where controllers share one user, it makes the pods of every StatefulSet, whose template says
    what they look like."""
    user = "system:kube-controller-manager"
    binding = {
        "metadata": {"name": "controllers"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "eve"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    rbac = f"{RBAC}/namespaces/{tenancy.namespace}/rolebindings"
    tenancy.admin.call("POST", rbac, binding)
    controllers, path = Api(testbed.kubeconfig, impersonate=user), tenancy.pods(more=DRY)

    def may_make_pods() -> bool:
        try:
            return bool(controllers.call("POST", path, pod("of-a-set")))
        except ApiError:
            return False

    eventually(may_make_pods, what="the binding is known")
    body = shadow_pod("dm-00000000-00000000-1")
    assert "only devicemount creates pods" in refusal(lambda: controllers.call("POST", path, body))


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
            SHADOW,
            {"metadata": {"annotations": {"devicemount.io/resources": '{"a.io/b": 9}'}}},
            METADATA,
            id="pretending that it asked for more",
        ),
        pytest.param(
            SHADOW, {"metadata": {"ownerReferences": [FOREIGN_OWNER]}}, METADATA, id="other owners"
        ),
        pytest.param(
            SHADOW, {"metadata": MANY["labels"]}, "at most 64 labels", id="more labels than needed"
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
