# SPDX-License-Identifier: Apache-2.0
"""Every vendor's answer, from the kubelet's checkpoint to what enters the container, or exactly the
reason for which it is refused.
"""

from pathlib import Path

import pytest

import vendor_answers as vendors
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.kubelet import parse_checkpoint
from devicemount_agent.allocation.nvidia import Instance, Instances, nobody_knows
from devicemount_agent.allocation.read import choice_of
from devicemount_agent.allocation.said import Answer, Ask, Reader, Said, Subject
from devicemount_agent.allocation.shown import node_shown
from devicemount_agent.errors import DeviceMountError
from devicemount_agent.model import Device, DeviceID, DeviceNumber, ResourceName
from readers import SHADOW, FakeLive, shipped_profiles, sources_on
from vendor_answers import Case, Refusal

CASES = vendors.cases()


async def read(
    root: Path,
    case: Case,
    *,
    accept_env_file: bool,
    instances: Instances = nobody_knows,
    live: Reader | None = None,
) -> tuple[Device, ...]:
    entries = parse_checkpoint(vendors.checkpoint(case.entries, pod_uid=SHADOW.uid))
    asked = {ResourceName(e.resource): len(e.ids) for e in case.entries}
    choice = choice_of(entries, SHADOW.uid, asked)
    assert choice is not None
    sources = sources_on(root, annotations=case.annotations, instances=instances, live=live)
    return await sources.devices(choice.entries, Ask(SHADOW, "team-a", accept_env_file))


@pytest.fixture
def root(tmp_path: Path, case: Case) -> Path:
    vendors.populate(tmp_path, case)
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_each_answer_becomes_what_the_vendor_would_have_given_or_is_refused(
    case: Case, root: Path
) -> None:
    refusal = case.refusal
    if refusal is not None and refusal.is_at_graft:
        await check_answered(root, case)
    elif refusal is not None:
        with pytest.raises(DeviceMountError) as refused:
            await read(root, case, accept_env_file=False)
        assert type(refused.value).__name__ == refusal.reason, refused.value
        assert refusal.text in str(refused.value)
    else:
        check(root, case, await read(root, case, accept_env_file=False))


async def check_answered(root: Path, case: Case) -> None:
    """What is refused when it is brought in is what was answered: test_nodes goes on from there."""
    devices = await read(root, case, accept_env_file=False)
    answered = {s["container_path"] for entry in case.entries for s in entry.answer["devices"]}
    assert {node.path for device in devices for node in device.nodes} == answered


# "legacy runtime" expects what that runtime leaves out, which no allocation tells.
BY_NVML = [c for c in CASES if c.vendor == "nvidia-mig" and c.variant != "legacy runtime"]


@pytest.mark.parametrize(
    "case", [c for c in BY_NVML if c.refusal == vendors.MIG_UNRESOLVED], ids=str
)
async def test_a_mig_id_that_proc_cannot_tell_is_resolved_where_nvml_can(
    case: Case, root: Path
) -> None:
    table = {n: Instance(t["parent"], t["gi"], t["ci"]) for n, t in vendors.mig_table().items()}
    check(root, case, await read(root, case, accept_env_file=False, instances=table.get))


@pytest.mark.parametrize("case", [c for c in CASES if c.refusal == vendors.LIVE_ONLY], ids=str)
async def test_what_only_the_running_shadow_pod_shows_is_taken_from_there(
    case: Case, root: Path
) -> None:
    for minor, name in enumerate(("uburma/udma0", "ummu/ummu0", "ummu/ummu1")):
        vendors.make_node(root, {"path": f"/dev/{name}", "major": 241, "minor": minor})
    host, subject = Host(root), subject_of(case)
    nodes = (
        node_shown(host, subject, n["path"], host.find(n["path"]).number() or NOTHING)
        for n in expanded(root, case)
    )
    live = FakeLive(Said(tuple(node for node in nodes if node is not None)))
    check(root, case, await read(root, case, accept_env_file=False, live=live))


NOTHING = DeviceNumber("c", 0, 0)


def subject_of(case: Case) -> Subject:
    (entry,) = case.entries
    name = ResourceName(entry.resource)
    profile = shipped_profiles().of(name, entry.answer["envs"], ())
    return Subject(name, frozenset(map(DeviceID, entry.ids)), Answer(), profile, SHADOW.uid)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.refusal and c.refusal.unless_env_file],
    ids=str,
)
async def test_a_slice_that_the_environment_limits_comes_with_the_env_file(
    case: Case, root: Path
) -> None:
    check(root, case, await read(root, case, accept_env_file=True))


def check(root: Path, case: Case, devices: tuple[Device, ...]) -> None:
    """Compare with what the file expects; nothing more, nothing less."""
    nodes = {node.path: node for device in devices for node in device.nodes}
    mounts = {m.path: m for device in devices for m in device.edits.mounts}
    mounted_nodes = {
        m["container_path"] for m in case.mounts() if "/by-path/pci-" in m["host_path"]
    }
    expected = {n["path"]: n for n in expanded(root, case)}
    assert nodes.keys() == expected.keys() | mounted_nodes
    for path, node in expected.items():
        assert str(nodes[path].access) == node["access"].replace("m", ""), path
        assert nodes[path].host_path == node["host_path"]
        there = (root / node["host_path"].lstrip("/")).stat().st_rdev
        assert (nodes[path].number.major << 8 | nodes[path].number.minor) == there or (
            nodes[path].number.minor > 255
        )
    wanted = {
        plain(m["container_path"]): (plain(m["host_path"]), m["read_only"])
        for m in case.mounts()
        if m["container_path"] not in mounted_nodes
    }
    assert {m.path: (m.host_path, m.read_only) for m in mounts.values()} == wanted
    links = {link.path: link.target for device in devices for link in device.edits.links}
    assert links == {link["path"]: link["target"] for link in case.links()}
    env = {v.name: v.value for device in devices for v in device.edits.env}
    answered = {k: v for entry in case.entries for k, v in entry.answer["envs"].items()}
    assert case.env_that_matters().items() <= env.items()
    assert {k: v for k, v in env.items() if k != "LD_LIBRARY_PATH"}.items() <= answered.items()
    texts = {text.path for device in devices for text in device.edits.overlaid}
    is_nvidias = case.vendor.startswith(("nvidia", "hami", "volcano"))
    assert texts == ({"/proc/driver/nvidia/params"} if is_nvidias else set())
    assert is_nvidias or not case.expected.get("proc_files")


def expanded(root: Path, case: Case) -> list[dict[str, str]]:
    """Replace "<each file>" by what the node has."""
    nodes: list[dict[str, str]] = []
    for node in case.nodes():
        directory, each, _ = node["path"].partition("/<each")
        if not each:
            nodes.append(node)
            continue
        for path in sorted((root / directory.lstrip("/")).iterdir()):
            place = f"{directory}/{path.name}"
            nodes.append({**node, "path": place, "host_path": place})
    return nodes


def plain(path: str) -> str:
    return path.rstrip("/")


def test_every_refusal_in_the_table_is_of_a_case_that_there_is() -> None:
    known: dict[str, set[str]] = {}
    for case in CASES:
        known.setdefault(case.vendor, {"*"}).add(case.variant)
    for vendor, table in vendors.REFUSED.items():
        assert table.keys() <= known[vendor], vendor
    assert all(isinstance(r, Refusal) for table in vendors.REFUSED.values() for r in table.values())


def test_every_file_of_data_has_a_case_or_says_what_else_it_is_for() -> None:
    files = {path.stem for path in vendors.DATA.glob("*.json")}
    with_cases = {case.vendor for case in CASES}
    assert files == with_cases | vendors.NOT_ANSWERS.keys()
    assert not with_cases & vendors.NOT_ANSWERS.keys()
