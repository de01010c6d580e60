# SPDX-License-Identifier: Apache-2.0
"""Namespaces with rules of their own, others who change a shadow pod, and nodes that are emptied:
each works or says its own reason, and is over when its cause is."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from component.operator.scene import LOOP, NODE, Scene, pod_body, running
from devicemount_operator import errors
from devicemount_operator.decide import drain
from devicemount_operator.decide import reservation as placing
from devicemount_operator.reasons import Pace
from devicemount_operator.transport import JsonObject

ADMISSION = "/apis/admissionregistration.k8s.io/v1"
PRIORITIES = "/apis/scheduling.k8s.io/v1/priorityclasses"
SHADOWS = "has(object.metadata.labels) && 'devicemount.io/shadow' in object.metadata.labels"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon: what the pauses are is tested elsewhere."""
    monkeypatch.setattr(Pace, "pause_s", lambda self, failures: 0.3)
    monkeypatch.setattr(placing, "RETRY_S", 0.3)
    monkeypatch.setattr(drain, "POLL_S", 0.3)


def said(mount: JsonObject) -> tuple[str, str]:
    """Return which of the two a mount that is not ready is, and the message."""
    conditions = {c["type"]: c for c in mount["status"]["conditions"] if c["status"] == "True"}
    (kind,) = conditions.keys() & {"Reconciling", "Stalled"}
    return kind, str(conditions[kind]["message"])


# Admission by others


def here(scene: Scene) -> JsonObject:
    return {"matchLabels": {"kubernetes.io/metadata.name": scene.namespace}}


def rules(*operations: str) -> JsonObject:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
    return {"resourceRules": [{**rule, "operations": list(operations)}]}


@asynccontextmanager
async def policy(scene: Scene, kind: str, spec: JsonObject) -> AsyncIterator[None]:
    """Have a policy for pods that are made in the scene's namespace, in effect, until the end."""
    name = f"{scene.namespace}-policy"
    document = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
    bound: JsonObject = {"policyName": name, "matchResources": {"namespaceSelector": here(scene)}}
    if kind == "Validating":
        bound["validationActions"] = ["Deny"]
    plural = f"{kind.lower()}admissionpolicies"
    binding = f"{kind.lower()}admissionpolicybindings"
    for path, what, body in (
        (plural, "AdmissionPolicy", {**spec, "matchConstraints": rules("CREATE")}),
        (binding, "AdmissionPolicyBinding", bound),
    ):
        await scene.call(
            "POST", f"{ADMISSION}/{path}", {**document, "kind": kind + what, "spec": body}
        )
    try:
        await scene.eventually(lambda: changes_admission(scene))
        yield
    finally:
        await scene.delete(f"{ADMISSION}/{binding}/{name}")
        await scene.delete(f"{ADMISSION}/{plural}/{name}")
        await scene.eventually(lambda: leaves_alone(scene))


def probe(scene: Scene) -> JsonObject:
    labels = {"devicemount.io/shadow": "probe"}
    body = pod_body("probe", scene.namespace, ("hold",), labels=labels)
    body["spec"]["containers"][0]["resources"] = {"limits": {LOOP: "1"}}
    return body


async def leaves_alone(scene: Scene) -> bool:
    """Tell whether a pod like a shadow pod passes admission, and nothing is done to it."""
    body = probe(scene)
    try:
        made = await scene.call("POST", f"{scene.pod_path('')}?dryRun=All", body)
    except errors.ApiError:
        return False
    (container,) = made["spec"]["containers"][:1]
    has = (made["metadata"].get("finalizers"), made["spec"].get("schedulingGates"))
    return has == (None, None) and container["resources"].get("limits") == {LOOP: "1"}


async def changes_admission(scene: Scene) -> bool:
    return not await leaves_alone(scene)


def patches(*lines: str) -> JsonObject:
    """Return a policy that patches shadow pods."""
    expression = f"[{', '.join(f'JSONPatch{{{line}}}' for line in lines)}]"
    return {
        "matchConditions": [{"name": "shadow", "expression": SHADOWS}],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
    }


FINALIZER = "op: 'add', path: '/metadata/finalizers', value: ['example.com/stays']"
GATE = (
    "op: 'add', path: '/spec/schedulingGates', "
    "value: [Object.spec.schedulingGates{name: 'example.com/quota'}]"
)
SIDECAR = (
    "op: 'add', path: '/spec/containers/-', "
    "value: Object.spec.containers{name: 'proxy', image: 'example.com/proxy:1'}"
)
NO_REQUEST = f"op: 'remove', path: '/spec/containers/0/resources/{{}}/{LOOP.replace('/', '~1')}'"


# Rules of a namespace


async def test_a_limit_range_and_pod_security_are_met_and_nothing_more_is_asked_for(
    scene: Scene,
) -> None:
    path = f"/api/v1/namespaces/{scene.namespace}/limitranges"
    container = {
        "type": "Container",
        "min": {"cpu": "50m", "memory": "64Mi"},
        "default": {"cpu": "1", "memory": "1Gi"},
        "maxLimitRequestRatio": {"cpu": "1", "memory": "1"},
    }
    limits = {"limits": [container, {"type": "Pod", "min": {"memory": "128Mi"}}]}
    await scene.running_pod()
    meta = {"name": "small", "namespace": scene.namespace}
    body = {"apiVersion": "v1", "kind": "LimitRange", "metadata": meta, "spec": limits}
    await scene.call("POST", path, body)
    restricted = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await scene.call("PATCH", f"/api/v1/namespaces/{scene.namespace}", restricted)
    async with scene.operator():
        with scene.counted(("create", "list")) as requests:
            await scene.mount("first")
            await scene.becomes("Mounted", "first")
            await scene.mount("second")
            await scene.becomes("Mounted", "second")
        assert requests.count("create pods") == 3, "one was refused, and it was learnt from"
        assert requests.count("list limitranges") == 1
        for shadow in await scene.shadows():
            has = shadow["spec"]["containers"][0]["resources"]
            assert has["requests"] == has["limits"]
            assert (has["limits"]["cpu"], has["limits"]["memory"]) == ("200m", "128Mi")
            assert shadow["status"]["qosClass"] == "Guaranteed"
            assert "runAsUser" not in shadow["spec"]["securityContext"]


@pytest.mark.usefixtures("hasty")
async def test_a_policy_is_named_with_its_text_and_its_end_needs_no_edit(scene: Scene) -> None:
    demands = {
        "failurePolicy": "Fail",
        "validations": [
            {
                "expression": "has(object.metadata.labels) && 'owner' in object.metadata.labels",
                "message": "every pod needs an owner",
            }
        ],
    }
    await scene.running_pod()
    async with scene.operator():
        async with policy(scene, "Validating", demands):
            await scene.mount()
            kind, message = said(await scene.becomes("NotAllowed"))
            assert kind == "Stalled"
            assert f"'{scene.namespace}-policy'" in message
            assert "every pod needs an owner" in message
        await scene.becomes("Mounted")
        assert len(await scene.events("NotAllowed")) == 1


@pytest.mark.usefixtures("hasty")
async def test_a_dead_webhook_is_named_and_no_refusal(scene: Scene) -> None:
    path, name = f"{ADMISSION}/validatingwebhookconfigurations", f"{scene.namespace}-dead"
    hook = {
        "name": "pods.dead.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": rules("CREATE")["resourceRules"],
        "namespaceSelector": here(scene),
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    body = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [hook],
    }
    await scene.running_pod()
    async with scene.operator():
        await scene.call("POST", path, body)
        await scene.eventually(lambda: changes_admission(scene))
        await scene.mount()
        kind, message = said(await scene.becomes("WebhookUnavailable"))
        assert kind == "Reconciling"
        assert "pods.dead.example.com" in message
        await scene.delete(f"{path}/{name}")
        await scene.becomes("Mounted")
        assert len(await scene.events("WebhookUnavailable")) == 1


@pytest.mark.usefixtures("hasty")
async def test_a_quota_of_cpu_and_memory_is_met_and_a_full_one_is_said(scene: Scene) -> None:
    path = f"/api/v1/namespaces/{scene.namespace}/resourcequotas"
    hard = {"requests.cpu": "1", "requests.memory": "1Gi", "limits.memory": "1Gi", "pods": "2"}
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight"}}
    await scene.running_pod()
    await scene.call("POST", path, {**body, "spec": {"hard": hard}})
    used = {**dict.fromkeys(hard, "0"), "pods": "1"}
    await scene.call("PATCH", f"{path}/tight/status", {"status": {"hard": hard, "used": used}})
    async with scene.operator():
        await scene.mount("first")
        await scene.becomes("Mounted", "first")
        await scene.mount("second")
        kind, message = said(await scene.becomes("QuotaExceeded", "second"))
        assert kind == "Reconciling"
        assert "exceeded quota: tight" in message


@pytest.mark.usefixtures("hasty")
async def test_a_priority_class_that_is_gone_and_a_default_above_the_target(scene: Scene) -> None:
    old, default = f"{scene.namespace}-old", f"{scene.namespace}-default"
    body = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
    await scene.call("POST", PRIORITIES, {**body, "metadata": {"name": old}, "value": 1000})
    target = pod_body("target", scene.namespace, ("main",))
    target["spec"]["priorityClassName"] = old

    async def is_known() -> bool:
        return bool(await scene.call("POST", scene.pod_path(""), target))

    await scene.eventually(is_known)
    await scene.set_status("target", running(("main",)))
    await scene.running_pod("plain")
    await scene.delete(f"{PRIORITIES}/{old}")
    async with scene.operator():
        await scene.mount("first")
        await scene.becomes("Mounted", "first")
        spec = (await scene.shadow())["spec"]
        assert (spec.get("priorityClassName"), spec["priority"]) == (None, 0)
        meta = {"name": default}
        above = {**body, "metadata": meta, "value": 5000, "globalDefault": True}
        await scene.call("POST", PRIORITIES, above)
        try:
            await scene.eventually(lambda: has_priority(scene, 5000))
            await scene.mount("second", pod="plain")
            kind, message = said(await scene.becomes("NotAllowed", "second"))
            assert kind == "Stalled"
            assert "pods without a PriorityClass get a priority above 0" in message
            await scene.mount("third")
            _, message = said(await scene.becomes("NotAllowed", "third"))
            assert f"PriorityClass {old} of pod target does not exist any more" in message
        finally:
            await scene.delete(f"{PRIORITIES}/{default}")
            await scene.eventually(lambda: has_priority(scene, 0))
        await scene.becomes("Mounted", "second")
        assert {s["spec"]["priority"] for s in await scene.shadows()} == {0}


async def has_priority(scene: Scene, value: int) -> bool:
    made = await scene.call("POST", f"{scene.pod_path('')}?dryRun=All", probe(scene))
    return bool(made["spec"].get("priority", 0) == value)


# What others make of a shadow pod


@pytest.mark.usefixtures("hasty")
async def test_a_gate_is_named_and_sidecar_and_finalizer_of_others_do_no_harm(
    scene: Scene,
) -> None:
    scene.agent.gate.clear()
    await scene.running_pod()
    async with policy(scene, "Mutating", patches(FINALIZER, GATE, SIDECAR)):
        async with scene.operator():
            await scene.mount()
            kind, message = said(await scene.becomes("Unschedulable"))
            assert kind == "Reconciling"
            assert "scheduling gate example.com/quota" in message
            first = await scene.shadow()
            path = scene.pod_path(first["metadata"]["name"])
            await scene.call("PATCH", path, {"spec": {"schedulingGates": None}})
            await scene.schedule(first)
            scene.agent.gate.set()
            await scene.becomes("Mounted")
            await lose(scene, first)
            await scene.becomes("Mounted")
            await only_left(scene, first)
        with scene.counted() as writes:
            async with scene.operator():
                known = scene.agent.listed(times=3)
                await scene.eventually(known)
                await scene.becomes("Mounted")
        assert writes == [], "what a finalizer keeps is no loss, also to an operator that starts"
        async with scene.operator():
            await scene.unmount()
            await scene.gone(scene.mount_path("dm"))
            assert len(await scene.shadows()) == 2, "kept by their finalizers"
            await scene.mount()
            await scene.becomes("Mounted")
            for shadow in await scene.shadows():
                path = scene.pod_path(shadow["metadata"]["name"])
                await scene.call("PATCH", path, {"metadata": {"finalizers": None}})
            (left,) = await scene.shadows()
            assert "deletionTimestamp" not in left["metadata"]


async def lose(scene: Scene, shadow: JsonObject) -> None:
    """Delete a shadow pod as others do, and let the kubelet end it once its agent has revoked."""
    name = shadow["metadata"]["name"]
    await scene.delete(scene.pod_path(name))
    await scene.becomes("ReservationLost")
    await scene.delete(scene.pod_path(name), grace_s=0)
    if await scene.get(scene.pod_path(name)) is not None:
        await scene.set_status(name, {"phase": "Failed"})


async def only_left(scene: Scene, former: JsonObject) -> None:
    """There is one shadow pod besides the one that a finalizer keeps."""
    names = {shadow["metadata"]["name"] for shadow in await scene.shadows()}
    assert len(names - {former["metadata"]["name"]}) == 1


@pytest.mark.usefixtures("hasty")
async def test_a_request_that_is_taken_away_is_named_and_leaves_no_pods(scene: Scene) -> None:
    await scene.running_pod()
    async with scene.operator():
        remove = (NO_REQUEST.format("limits"), NO_REQUEST.format("requests"))
        async with policy(scene, "Mutating", patches(*remove)):
            await scene.mount()
            kind, message = said(await scene.becomes("Insufficient"))
            assert kind == "Reconciling"
            assert f"only 0 of 1 {LOOP}" in message
            await scene.eventually(lambda: none_left(scene))
        await scene.becomes("Mounted")
        assert len(await scene.shadows()) == 1


async def none_left(scene: Scene) -> bool:
    return not await scene.shadows()


# Kubelets and nodes


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("failure", "reason"),
    [("UnexpectedAdmissionError", "Insufficient"), ("OutOfpods", "Unschedulable")],
)
async def test_a_kubelet_that_rejects_again_and_again_leaves_no_failed_pods(
    scene: Scene, failure: str, reason: str
) -> None:
    scene.agent.gate.clear()
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        seen: set[str] = set()

        async def another() -> JsonObject | None:
            (pod,) = await scene.shadows() or [None]
            return pod if pod is not None and pod["metadata"]["uid"] not in seen else None

        for _ in range(4):
            pod = await scene.eventually(another)
            seen.add(pod["metadata"]["uid"])
            status = {"phase": "Failed", "reason": failure, "message": "in the kubelet's words"}
            await scene.set_status(pod["metadata"]["name"], status)
            _, message = said(await scene.becomes(reason))
            assert f"{failure}: in the kubelet's words" in message
        await scene.schedule(await scene.eventually(another))
        scene.agent.gate.set()
        await scene.becomes("Mounted")
        assert len(await scene.events(reason)) == 1


@pytest.mark.usefixtures("hasty")
async def test_an_eviction_by_the_kubelet_is_told_in_its_words_and_made_good(
    scene: Scene,
) -> None:
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        evicted = await scene.shadow()
        await scene.schedule(evicted)
        text = "The node was low on resource: memory."
        status = {"phase": "Failed", "reason": "Evicted", "message": text}
        await scene.set_status(evicted["metadata"]["name"], status)
        (event,) = await scene.eventually(lambda: scene.events("ReservationLost"))
        assert f"(Evicted: {text}" in event["message"]
        await scene.becomes("Mounted")
        (other,) = await scene.shadows()
        assert other["metadata"]["uid"] != evicted["metadata"]["uid"]


async def cordon(scene: Scene, value: Any) -> None:
    await scene.call("PATCH", f"/api/v1/nodes/{NODE}", {"spec": {"unschedulable": value}})


@pytest.fixture
async def cordonable(scene: Scene) -> AsyncIterator[None]:
    yield
    await cordon(scene, value=None)


@pytest.mark.usefixtures("hasty", "cordonable")
async def test_nothing_is_reserved_anew_on_a_node_that_is_drained(scene: Scene) -> None:
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        evicted = await scene.shadow()
        await scene.schedule(evicted)
        await cordon(scene, value=True)
        with scene.counted() as writes:
            await lose(scene, evicted)
            kind, message = said(await scene.becomes("NodeDraining"))
            assert kind == "Reconciling"
            assert f"node {NODE} is cordoned" in message
        assert "create pods" not in writes
        await scene.mount("new")
        await scene.becomes("Mounted", "new")
    async with scene.operator():
        with scene.counted() as writes:
            await scene.becomes("NodeDraining")
            await scene.eventually(scene.agent.listed(times=5))
        assert writes == [], "an operator that starts knows it from status"
        await cordon(scene, value=None)
        await scene.becomes("Mounted")


async def test_too_many_pods_on_a_node_is_said_as_the_scheduler_does(scene: Scene) -> None:
    scene.agent.gate.clear()
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        shadow = await scene.shadow()
        text = "0/1 nodes are available: 1 Too many pods."
        complaint = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        await scene.set_status(
            shadow["metadata"]["name"], {"conditions": [{**complaint, "message": text}]}
        )
        _, message = said(await scene.becomes("Unschedulable"))
        assert text in message
