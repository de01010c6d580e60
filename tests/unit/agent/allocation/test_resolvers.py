# SPDX-License-Identifier: Apache-2.0
"""Names of devices to nodes on fake nodes, as runtime-resolution.json says."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import vendor_answers as vendors
from devicemount_agent.allocation.ascend import Ascend
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.nvidia import Instance, NvidiaProc
from devicemount_agent.allocation.resolver import Resolved, Resolver
from devicemount_agent.allocation.said import Answer, Subject
from devicemount_agent.errors import AllocationUnknown
from devicemount_agent.model import DeviceID, ResourceName
from devicemount_node_api import deviceplugin_pb2
from readers import SHADOW, shipped_profiles

# Cases that are settled elsewhere, each with where.
NOT_HERE = {
    "CDI name of the plugin without a spec file": "the allocation waits for the spec (test_cdi)",
    "vNPU": "refused by its profile (test_vendors)",
    "virtual among other options": "refused by its profile",
    "split at start": "refused by its profile",
    "A5": "read from the running shadow pod: ids may be logic ids (profile ascend-a5)",
    "Atlas 200": "the product is not told by anything that an allocation shows",
}
# What the message says in our words.
SAID = {
    "new MIG id without a table": "cannot be resolved from /proc",
    "MIG instance absent from mig-minors": "no line gpu2/gi3/access",
    "unknown UUID": "no such GPU on this node",
    "none and void": "nothing names a device",
    "all": "no answer of NVIDIA's device plugin",
    "no NVIDIA driver": "no NVIDIA driver on this node",
    "GPU not initialised": "no such GPU on this node: .*0000:31:00.0 is not initialised",
    "missing card": "/dev/davinci9 does not exist on the node",
    "vNPU id": "is no id that Huawei's device plugin gives a whole card",
}


def cases(vendor: str) -> list[Any]:
    content = vendors.resolution()[vendor]
    all_cases = [*content["cases"], *content["root_variants"]]
    return [pytest.param(c, id=c["name"]) for c in all_cases if c["name"] not in NOT_HERE]


def change(root: Path, case: Mapping[str, Any]) -> None:
    for path in case.get("remove_paths", []):
        shutil.rmtree(root / path.lstrip("/"))
    for path in case.get("remove_nodes", []):
        (root / path.lstrip("/")).unlink()
    for path, text in case.get("set_files", {}).items():
        vendors.write(root, path, text)
    for node in case.get("set_nodes", []):
        vendors.make_node(root, node)
    for old, new in case.get("move", {}).items():
        for path in sorted(root.glob(old.lstrip("/"))):
            place = root / new.lstrip("/").replace("nvidia*", path.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)


def subject(case: Mapping[str, Any], resource: str) -> Subject:
    given = case["input"]
    mounts = [deviceplugin_pb2.Mount(container_path=path) for path in given.get("mounts", [])]
    ids = frozenset(map(DeviceID, given.get("device_ids", [])))
    answer = Answer(envs=given.get("env", {}), mounts=mounts)
    name = ResourceName(resource)
    return Subject(name, ids, answer, shipped_profiles().usual(name), SHADOW.uid)


def resolved(resolver: Resolver, asked: Subject) -> Resolved:
    names = resolver.names(asked, "env") or resolver.names(asked, "ids")
    if not names:
        raise AllocationUnknown("nothing names a device")
    return resolver.resolve(asked, names)


def check(case: Mapping[str, Any], resolver: Resolver, asked: Subject) -> None:
    expected = case["expected"]
    if "error" in expected or case["name"] in SAID:
        with pytest.raises(AllocationUnknown, match=SAID[case["name"]]):
            resolved(resolver, asked)
        return
    if not expected["nodes"]:
        assert resolver.names(asked, "env") == ()
        return
    found = resolved(resolver, asked)
    assert {
        (n.path, n.host_path, n.number.kind, n.number.major, n.number.minor)
        for n in (*found.own, *found.shared)
    } == {
        (n["path"], n.get("host_path", n["path"]), n["type"], n["major"], n["minor"])
        for n in (*expected["nodes"], *expected["shared_nodes"])
    }
    for link in expected.get("links", []):
        assert (link["path"], link["target"]) in {(x.path, x.target) for x in found.edits.links}


@pytest.mark.parametrize("case", cases("nvidia"))
def test_nvidias_names_are_resolved_by_proc(tmp_path: Path, case: Mapping[str, Any]) -> None:
    vendors.make_root(tmp_path, "nvidia")
    change(tmp_path, case)
    table = {
        name: Instance(told["parent"], told["gi"], told["ci"])
        for name, told in case["input"].get("mig_table", {}).items()
    }
    resolver = NvidiaProc(Host(tmp_path), instances=table.get)
    check(case, resolver, subject(case, "nvidia.com/gpu"))


@pytest.mark.parametrize("case", cases("ascend"))
def test_ascends_names_are_resolved_by_their_numbers(
    tmp_path: Path, case: Mapping[str, Any]
) -> None:
    vendors.make_root(tmp_path, "ascend")
    change(tmp_path, case)
    resource = "huawei.com/Ascend310B" if case["name"] == "310B" else "huawei.com/Ascend910"
    check(case, Ascend(Host(tmp_path)), subject(case, resource))


def test_programs_are_told_not_to_make_device_nodes(tmp_path: Path) -> None:
    vendors.make_root(tmp_path, "nvidia")
    (text,) = NvidiaProc(Host(tmp_path)).always().overlaid
    before = (tmp_path / "proc/driver/nvidia/params").read_text()
    assert text.path == "/proc/driver/nvidia/params"
    assert text.text == before.replace("ModifyDeviceFiles: 1", "ModifyDeviceFiles: 0")


@pytest.mark.parametrize(
    ("visible", "message"),
    [
        ("GPU-3f2a9c1e\n", "no such GPU"),
        ("../../etc", "no such GPU"),
        ("99", "no GPU with index 99"),
        ("0:1", "0:1 names a MIG device by its place on its GPU"),
        ("MIG-GPU-c9e1f356-7a28-4d0b-85f4-6b3d2c19e0a7/7", "cannot be resolved"),
        ("0,", "no such GPU"),
    ],
)
def test_a_name_that_is_none_is_said(tmp_path: Path, visible: str, message: str) -> None:
    vendors.make_root(tmp_path, "nvidia")
    asked = subject({"input": {"env": {"NVIDIA_VISIBLE_DEVICES": visible}}}, "nvidia.com/gpu")
    with pytest.raises(AllocationUnknown, match=message):
        resolved(NvidiaProc(Host(tmp_path)), asked)


@pytest.mark.parametrize("visible", ["a-b-c", "0-", "4;5", "٤", "99999"])
def test_a_card_that_is_none_is_said(tmp_path: Path, visible: str) -> None:
    vendors.make_root(tmp_path, "ascend")
    asked = subject({"input": {"env": {"ASCEND_VISIBLE_DEVICES": visible}}}, "huawei.com/Ascend910")
    with pytest.raises(AllocationUnknown, match="which is no card"):
        resolved(Ascend(Host(tmp_path)), asked)
