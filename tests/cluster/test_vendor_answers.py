# SPDX-License-Identifier: Apache-2.0
"""Every vendor's answer through a real kubelet: what its checkpoint says becomes what is expected.

A stand-in plugin registers the vendor's resource and answers what the vendor's code answers; a pod
asks for it; the kubelet writes its checkpoint; our readers read that, on files that fit the case.
The pods wait for a volume that never comes, so no container is made.
"""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import vendor_answers as vendors
from cluster.world import World, eventually
from devicemount_agent.allocation.kubelet import Entry, parse_checkpoint
from devicemount_agent.allocation.read import choice_of
from devicemount_agent.allocation.said import Ask
from devicemount_agent.errors import DeviceMountError
from devicemount_agent.model import Device, ResourceName
from devicemount_testbed.api import Api, Object, pod_path
from devicemount_testbed.cluster import Testbed
from readers import SHADOW, sources_on
from unit.agent.allocation import test_vendors as table
from vendor_answers import Case
from vendors.answers import RefusedRequest, refused_requests
from vendors.plugin import CHECKPOINT, Answer, StandIn, answering, await_known, refusing, registered

NODE = "node1"
CASES = vendors.cases()
REQUESTS = refused_requests()


@dataclass
class Kubelet:
    """What it wrote of each case, and of each request that was refused, what it said."""

    entries: dict[str, tuple[Entry, ...]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def kubelet(testbed: Testbed, api: Api) -> Iterator[Kubelet]:
    """Let the kubelet allocate every case; those of one resource one after another."""
    told = Kubelet()
    namespace = f"vendor-answers-{secrets.token_hex(3)}"
    api.make_namespace(namespace)
    try:
        with ExitStack() as undo:
            stand_ins: dict[str, StandIn] = {}
            for turn in _turns([*CASES, *REQUESTS]):
                _offer(testbed, undo, stand_ins, turn)
                _allocate(World(testbed, api, namespace), turn, told)
    finally:
        api.delete(f"/api/v1/namespaces/{namespace}")
    yield told


@pytest.fixture
def root(tmp_path: Path, case: Case) -> Path:
    """Make the node's files that fit the case."""
    vendors.populate(tmp_path, case)
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_what_the_kubelet_wrote_becomes_exactly_what_is_expected_or_the_refusal(
    kubelet: Kubelet, root: Path, case: Case
) -> None:
    entries = kubelet.entries[str(case)]
    refusal = case.refusal
    if refusal is None or refusal.is_at_graft:
        devices = await _read(root, case, entries, accept_env_file=False)
        if refusal is None:
            table.check(root, case, devices)
        return
    with pytest.raises(DeviceMountError) as refused:
        await _read(root, case, entries, accept_env_file=False)
    assert type(refused.value).__name__ == refusal.reason, refused.value
    assert refusal.text in str(refused.value)
    if refusal.unless_env_file and case.variant != "control disabled":
        table.check(root, case, await _read(root, case, entries, accept_env_file=True))


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_what_the_plugin_refuses_the_kubelet_tells_the_pod(
    kubelet: Kubelet, request_: RefusedRequest
) -> None:
    assert request_.error in kubelet.refusals[str(request_)]


async def _read(
    root: Path, case: Case, entries: tuple[Entry, ...], *, accept_env_file: bool
) -> tuple[Device, ...]:
    asked = {ResourceName(entry.resource): len(entry.ids) for entry in case.entries}
    choice = choice_of(entries, entries[0].pod_uid, asked)
    assert choice is not None
    sources = sources_on(root, annotations=case.annotations)
    return await sources.devices(choice.entries, Ask(SHADOW, "team-a", accept_env_file))


def _resources(one: Case | RefusedRequest) -> dict[str, tuple[str, ...]]:
    """Return the ids by resource that it asks for."""
    if isinstance(one, RefusedRequest):
        return {one.resource: one.ids}
    return {entry.resource: entry.ids for entry in one.entries}


def _turns(all_of_them: Iterable[Case | RefusedRequest]) -> list[list[Case | RefusedRequest]]:
    """Split them so that no two of one turn have a resource in common."""
    turns: list[tuple[set[str], list[Case | RefusedRequest]]] = []
    for one in all_of_them:
        names = set(_resources(one))
        free = next((turn for turn in turns if not turn[0] & names), None)
        if free is None:
            turns.append((names, [one]))
        else:
            free[0].update(names)
            free[1].append(one)
    return [turn for _, turn in turns]


def _offer(
    testbed: Testbed,
    undo: ExitStack,
    stand_ins: dict[str, StandIn],
    turn: list[Case | RefusedRequest],
) -> None:
    """Let the plugins have what the turn asks for, each a stand-in of its own.

    One after another: the kubelet takes its checkpoint's content under a lock and writes the file
    outside of it, so of two writes at once the older content may win, and stays until the next.
    """
    for one in turn:
        for resource, ids in _resources(one).items():
            says = _says(one, resource)
            if resource in stand_ins:
                stand_ins[resource].offer(ids, says)
                await_known(testbed, NODE, stand_ins[resource])
            else:
                stand_ins[resource] = StandIn(resource, ids, says)
                undo.enter_context(registered(testbed, NODE, stand_ins[resource]))


def _says(one: Case | RefusedRequest, resource: str) -> Answer:
    if isinstance(one, RefusedRequest):
        return refusing(one.error)
    return answering(next(entry for entry in one.entries if entry.resource == resource))


def _allocate(world: World, turn: list[Case | RefusedRequest], told: Kubelet) -> None:
    """Start a pod for each, keep what the kubelet says, end the pods."""
    pods = {str(one): _start(world, f"asks-{n}", _resources(one)) for n, one in enumerate(turn)}
    by_uid = {pod["metadata"]["uid"]: name for name, pod in pods.items()}

    def is_told() -> bool:
        entries = parse_checkpoint((world.testbed.node_root(NODE) / CHECKPOINT).read_bytes())
        for uid, name in by_uid.items():
            told.entries[name] = tuple(entry for entry in entries if entry.pod_uid == uid)
        for found in world.api.call("GET", pod_path(world.namespace))["items"]:
            if found["status"].get("reason") == "UnexpectedAdmissionError":
                told.refusals[by_uid[found["metadata"]["uid"]]] = found["status"]["message"]
        return all(told.entries[name] or told.refusals.get(name) for name in pods)

    eventually(is_told, what=f"the kubelet has decided on {list(pods)}")
    for pod in pods.values():
        path = pod_path(world.namespace, pod["metadata"]["name"])
        world.api.delete(path, {"gracePeriodSeconds": 0})
    eventually(
        lambda: not world.api.call("GET", pod_path(world.namespace))["items"],
        what="the pods are gone",
    )


def _start(world: World, name: str, resources: dict[str, tuple[str, ...]]) -> Object:
    """Start a pod on the node whose volume never comes; its container is called as a shadow's."""
    container = {
        "name": "hold",
        "image": "localhost/busybox:1",
        "resources": {"limits": {resource: len(ids) for resource, ids in resources.items()}},
        "volumeMounts": [{"name": "never", "mountPath": "/never"}],
    }
    spec = {
        "nodeName": NODE,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [{"name": "never", "secret": {"secretName": "never"}}],
    }
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    return world.api.call("POST", pod_path(world.namespace), body)
