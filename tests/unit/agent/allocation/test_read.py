# SPDX-License-Identifier: Apache-2.0
"""Joining the kubelet's two sources."""

import asyncio
import base64
import json
from dataclasses import dataclass
from typing import cast

import pytest

from devicemount_agent.allocation.facts import Facts
from devicemount_agent.allocation.kubelet import (
    Checkpoint,
    Entry,
    Listing,
    PodResources,
    parse_checkpoint,
)
from devicemount_agent.allocation.libraries import Libraries
from devicemount_agent.allocation.read import (
    LAST_WORD_S,
    Allocation,
    Choice,
    choice_of,
    is_shown,
    other_with,
)
from devicemount_agent.allocation.sources import ReaderSources
from devicemount_agent.errors import (
    AllocationUnknown,
    DeviceMountError,
    Insufficient,
    NodeUnavailable,
)
from devicemount_agent.model import DeviceID, PodUID, ResourceName
from devicemount_agent.requests import ShadowPod

GPU = ResourceName("example.com/gpu")
NIC = ResourceName("example.com/nic")
UID = PodUID("shadow-uid")


def ids(*names: str) -> frozenset[DeviceID]:
    return frozenset(map(DeviceID, names))


def entry(
    *names: str, uid: str = UID, container: str = "hold", resource: ResourceName = GPU
) -> Entry:
    return Entry(PodUID(uid), container, resource, ids(*names), b"")


@dataclass
class Always:
    """A kubelet whose List says one thing."""

    listing: Listing

    async def list(self) -> Listing:
        return self.listing


def test_a_checkpoint_is_read_as_the_kubelet_writes_it() -> None:
    raw = {
        "Data": {
            "PodDeviceEntries": [
                {
                    "PodUID": UID,
                    "ContainerName": "hold",
                    "ResourceName": GPU,
                    "DeviceIDs": {"0": ["gpu-0", "gpu-1"], "1": ["gpu-1"]},
                    "AllocResp": base64.b64encode(b"answer").decode(),
                }
            ],
            "RegisteredDevices": {GPU: ["gpu-0", "gpu-1"]},
        },
        "Checksum": 1234567890,
    }
    (read,) = parse_checkpoint(json.dumps(raw).encode())
    assert read == Entry(UID, "hold", GPU, ids("gpu-0", "gpu-1"), b"answer")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":1}', ()),
        (b'{"Data":{"PodDeviceEntries":[{"PodUID":"u"}]}}', NodeUnavailable),
        (b'{"Data":[]}', NodeUnavailable),
        (b'{"Data":', NodeUnavailable),
        (b"\xff", NodeUnavailable),
    ],
    ids=["no entries", "a field is missing", "another shape", "cut off", "no text"],
)
def test_a_checkpoint_of_no_known_shape_is_said(
    raw: bytes, said: tuple[Entry, ...] | type[DeviceMountError]
) -> None:
    if isinstance(said, tuple):
        assert parse_checkpoint(raw) == said
        return
    with pytest.raises(said, match="checkpoint is of no known shape"):
        parse_checkpoint(raw)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [entry("gpu-0", uid="another-pod")],
        [entry("gpu-0", container="sidecar")],
    ],
    ids=["nobody", "another pod with the same ids", "another container of the shadow pod"],
)
def test_there_is_no_choice_while_hold_is_not_named(entries: list[Entry]) -> None:
    assert choice_of(entries, UID, {GPU: 1}) is None


@pytest.mark.parametrize(
    ("entries", "asked", "message"),
    [
        ([entry("gpu-0")], {GPU: 2}, "1 of 2 example.com/gpu"),
        ([entry("gpu-0", "gpu-1")], {GPU: 1}, "2 of 1 example.com/gpu"),
        ([entry("gpu-0")], {GPU: 1, NIC: 1}, "0 of 1 example.com/nic"),
    ],
    ids=["fewer", "more", "not this resource"],
)
def test_counts_must_be_what_was_asked(
    entries: list[Entry], asked: dict[ResourceName, int], message: str
) -> None:
    with pytest.raises(Insufficient, match=message):
        choice_of(entries, UID, asked)


def test_only_what_was_asked_for_is_taken() -> None:
    entries = [entry("gpu-0"), entry("nic-0", resource=NIC)]
    choice = choice_of(entries, UID, {NIC: 1})
    assert choice is not None
    assert choice.ids() == {NIC: ids("nic-0")}


LISTING: Listing = {
    ("team-a", "dm-a-b-0"): {"hold": {GPU: ids("gpu-0")}, "sidecar": {GPU: ids("gpu-1")}},
    ("team-b", "job"): {"main": {GPU: ids("gpu-2", "gpu-3")}},
}


@pytest.mark.parametrize(
    ("namespace", "name", "wanted", "shown"),
    [
        ("team-a", "dm-a-b-0", {GPU: ids("gpu-0")}, True),
        ("team-a", "dm-a-b-0", {GPU: ids("gpu-1")}, False),
        ("team-a", "dm-a-b-0", {GPU: ids("gpu-0"), NIC: ids("nic-0")}, False),
        ("team-b", "dm-a-b-0", {GPU: ids("gpu-0")}, False),
        ("team-a", "dm-a-b-1", {GPU: ids("gpu-0")}, False),
    ],
    ids=["its own", "another container's", "one is missing", "another namespace", "another name"],
)
def test_list_must_show_the_name_with_the_very_ids(
    namespace: str,
    name: str,
    wanted: dict[ResourceName, frozenset[DeviceID]],
    *,
    shown: bool,
) -> None:
    assert is_shown(LISTING, namespace, name, wanted) is shown


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        (
            "dm-a-b-0",
            ids("gpu-8"),
            "gives gpu-8 to the shadow pod dm-a-b-0, and its PodResources API says gpu-0",
        ),
        ("dm-a-b-0", ids("gpu-0", "gpu-8"), "gives gpu-0, gpu-8 to .* API says gpu-0"),
        ("dm-a-b-2", ids("gpu-0"), "API says nothing"),
        ("dm-a-b-1", ids("gpu-0"), None),
    ],
    ids=["another device", "one of two", "none of them", "not listed (yet)"],
)
async def test_what_lasts_between_the_kubelets_two_sources_is_told_with_both_sides(
    name: str, wanted: frozenset[DeviceID], message: str | None
) -> None:
    """Before the deadline of who asks, who would wait for what does not heal."""
    listing = {**LISTING, ("team-a", "dm-a-b-2"): {"hold": {}}}
    allocation = Allocation(
        cast(Checkpoint, None),
        cast(PodResources, Always(listing)),
        sources=cast(ReaderSources, None),
        libraries=cast(Libraries, None),
        facts=cast(Facts, None),
    )
    deadline = asyncio.get_running_loop().time() + LAST_WORD_S + 0.02
    shadow, choice = ShadowPod(UID, name), Choice((Entry(UID, "hold", GPU, wanted, b""),))
    with pytest.raises(AllocationUnknown if message else TimeoutError, match=message):
        await allocation.proven(shadow, "team-a", choice, deadline=deadline)
    assert asyncio.get_running_loop().time() < deadline


def test_another_pod_with_one_of_the_devices_is_found() -> None:
    wanted = {GPU: ids("gpu-3")}
    assert other_with(LISTING, "team-a", "dm-a-b-0", wanted) == ("team-b", "job")
    assert other_with(LISTING, "team-a", "dm-a-b-0", {GPU: ids("gpu-0")}) is None
