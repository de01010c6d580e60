# SPDX-License-Identifier: Apache-2.0
"""The order of the sources, and what happens where they disagree."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import vendor_answers as vendors
from devicemount_agent.allocation.kubelet import Entry
from devicemount_agent.allocation.said import Answer, Ask, Said
from devicemount_agent.errors import (
    AllocationUnknown,
    DeviceMountError,
    EnvFileNeeded,
    NotAllowed,
    ReservationLost,
    UnsupportedResource,
)
from devicemount_agent.model import (
    Access,
    BindMount,
    Device,
    DeviceID,
    DeviceNode,
    DeviceNumber,
    Edits,
    ResourceName,
)
from devicemount_agent.profiles.store import Profiles
from devicemount_node_api import deviceplugin_pb2
from readers import SHADOW, FakeLive, sources_on

ASK = Ask(SHADOW, "team-a", accept_env_file=False)
ONE = "GPU-3f2a9c1e-5b7d-4e80-9a16-0c4d2e8f7b51"  # /dev/nvidia1
OTHER = "GPU-a07d4b92-1c3e-4f65-8b2d-94e1f60c3a78"  # /dev/nvidia0
MIG = "MIG-6d0f2b84-3e71-5c9a-a4d8-f15b7e902c36"  # /dev/nvidia2 and two capabilities


def entry(resource: str, answer: Answer, *ids: str) -> Entry:
    raw = answer.SerializeToString()
    return Entry(SHADOW.uid, "hold", ResourceName(resource), frozenset(map(DeviceID, ids)), raw)


def paths(devices: tuple[Device, ...]) -> set[str]:
    return {node.path for device in devices for node in device.nodes}


def spec(*paths_in: str) -> Answer:
    return Answer(
        devices=[
            deviceplugin_pb2.DeviceSpec(host_path=p, container_path=p, permissions="rw")
            for p in paths_in
        ]
    )


@pytest.fixture
def nvidia(tmp_path: Path) -> Path:
    vendors.make_root(tmp_path, "nvidia")
    return tmp_path


@pytest.fixture
def ascend(tmp_path: Path) -> Path:
    vendors.make_root(tmp_path, "ascend")
    return tmp_path


def shown(root: Path, *names: str, edits: Edits | None = None) -> FakeLive:
    """A shadow container with these nodes."""
    nodes = tuple(
        DeviceNode(f"/dev/{name}", f"/dev/{name}", _number(root / "dev" / name), Access.READ)
        for name in names
    )
    return FakeLive(Said(nodes, edits or Edits()))


def _number(path: Path) -> DeviceNumber:
    from devicemount_agent.allocation.host import Host

    root, _, name = str(path).rpartition("/dev/")
    number = Host(Path(root)).find(f"/dev/{name}").number()
    assert number is not None
    return number


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            Answer(envs={"NVIDIA_VISIBLE_DEVICES": OTHER}),
            rf"env \({OTHER}\) and ids \({ONE}\) name different devices: /dev/nvidia0 and"
            " /dev/nvidia1",
        ),
        (Answer(envs={"NVIDIA_VISIBLE_DEVICES": "1"}), "name different devices"),
        (
            spec("/dev/nvidiactl", "/dev/nvidia0"),
            "/dev/nvidia1 is what the kubelet counts, and the device plugin's answer gives"
            " /dev/nvidia0, /dev/nvidiactl, without /dev/nvidia1",
        ),
    ],
    ids=["another uuid", "another index", "another node"],
)
async def test_an_answer_that_gives_another_gpu_is_refused_with_both_sides(
    nvidia: Path, answer: Answer, message: str
) -> None:
    """Whatever the shadow pod shows: it shows what the answer says."""
    sources = sources_on(nvidia, live=shown(nvidia, "nvidia0", "nvidiactl"))
    with pytest.raises(AllocationUnknown, match=message):
        await sources.devices([entry("nvidia.com/gpu", answer, ONE)], ASK)


async def test_a_cdi_spec_that_gives_another_gpu_is_refused(nvidia: Path) -> None:
    kind = "k8s.device-plugin.nvidia.com/gpu"
    device = {"name": ONE, "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}}
    content = {"cdiVersion": "0.5.0", "kind": kind, "devices": [device]}
    vendors.write(nvidia, "/var/run/cdi/x.json", json.dumps(content))
    answer = Answer(cdi_devices=[deviceplugin_pb2.CDIDevice(name=f"{kind}={ONE}")])
    with pytest.raises(AllocationUnknown, match="without /dev/nvidia1"):
        await sources_on(nvidia).devices([entry("nvidia.com/gpu", answer, ONE)], ASK)


async def test_what_proc_cannot_tell_the_running_shadow_pod_shows(nvidia: Path) -> None:
    answer = Answer(envs={"NVIDIA_VISIBLE_DEVICES": MIG})
    sources = sources_on(nvidia, live=shown(nvidia, "nvidia2", "nvidiactl"))
    devices = await sources.devices([entry("nvidia.com/mig-1g.10gb", answer, MIG)], ASK)
    assert paths(devices) == {"/dev/nvidia2", "/dev/nvidiactl"}


@pytest.mark.parametrize(
    ("id_", "answer"),
    [
        (ONE, Answer(envs={"NVIDIA_VISIBLE_DEVICES": ONE})),
        (ONE, spec("/dev/nvidiactl", "/dev/nvidia1")),
        (MIG, Answer(envs={"NVIDIA_VISIBLE_DEVICES": MIG})),
    ],
    ids=["resolver", "device nodes", "live"],
)
async def test_whatever_tells_the_nodes_programs_are_told_to_make_none(
    nvidia: Path, id_: str, answer: Answer
) -> None:
    sources = sources_on(nvidia, live=shown(nvidia, "nvidia2", "nvidiactl"))
    (device,) = await sources.devices([entry("nvidia.com/gpu", answer, id_)], ASK)
    (text,) = device.edits.overlaid
    assert text.path == "/proc/driver/nvidia/params"
    assert "ModifyDeviceFiles: 0" in text.text


ONE_CARD = Answer(envs={"ASCEND_VISIBLE_DEVICES": "4", "ASCEND_RUNTIME_OPTIONS": ""})
SHARED = ("davinci_manager", "devmm_svm", "hisi_hdc", "dvpp_cmdlist")


async def test_what_is_expected_and_shown_comes_with_what_the_vendors_hook_mounted(
    ascend: Path,
) -> None:
    hooked = BindMount("/usr/local/dcmi", "/usr/local/dcmi", read_only=True)
    live = shown(ascend, "davinci4", *SHARED, edits=Edits(mounts=(hooked,)))
    sources = sources_on(ascend, live=live)
    devices = await sources.devices([entry("huawei.com/Ascend910", ONE_CARD, "Ascend910-4")], ASK)
    assert paths(devices) == {"/dev/davinci4", *(f"/dev/{name}" for name in SHARED)}
    assert devices[0].edits.mounts == (hooked,)


@pytest.mark.parametrize(
    "answer", [ONE_CARD, spec("/dev/davinci4")], ids=["runtime mode", "device mode"]
)
async def test_a_card_that_volcano_decided_is_refused_by_name_also_where_all_agree(
    ascend: Path, answer: Answer
) -> None:
    key = "huawei.com/Ascend910"
    sources = sources_on(ascend, annotations={key: "Ascend910-4"})
    with pytest.raises(
        UnsupportedResource,
        match=rf"Ascend910: another scheduler \(Volcano, HAMi\) decided .* pod bears {key}$",
    ):
        await sources.devices([entry("huawei.com/Ascend910", answer, "Ascend910-4")], ASK)


async def test_a_card_that_the_plugin_noted_in_the_pod_is_no_schedulers(ascend: Path) -> None:
    """Huawei's plugin does so without Volcano too, often before the pod has a sandbox."""
    noted = {"huawei.com/AscendReal": "Ascend910-4", "huawei.com/kltDev": "Ascend910-4"}
    card = entry("huawei.com/Ascend910", ONE_CARD, "Ascend910-4")
    assert await sources_on(ascend, annotations=noted).devices([card], ASK)


async def test_what_is_shown_widens_no_right(ascend: Path) -> None:
    """A shown node says nothing of what may be done with it: the answer does."""
    cards = ("davinci4", *SHARED)
    answer = spec(*(f"/dev/{name}" for name in cards))
    answer.devices[0].permissions = "r"
    live = shown(ascend, *cards)
    assert live.shows is not None
    wide = tuple(replace(node, access=Access.READ | Access.WRITE) for node in live.shows.nodes)
    sources = sources_on(ascend, live=FakeLive(Said(wide)))
    (device,) = await sources.devices([entry("huawei.com/Ascend910", answer, "Ascend910-4")], ASK)
    assert {n.path: n.access for n in device.nodes}["/dev/davinci4"] is Access.READ


async def test_a_node_that_may_not_be_opened_is_no_device(tmp_path: Path) -> None:
    """As of plugins that name devices by mounts of /dev/null."""
    vendors.make_node(tmp_path, {"path": "/dev/null", "major": 1, "minor": 3})
    marker = deviceplugin_pb2.Mount(
        container_path="/var/run/nvidia-container-devices/GPU-1", host_path="/dev/null"
    )
    with pytest.raises(AllocationUnknown, match="answered mounts, no device nodes"):
        await sources_on(tmp_path).devices([entry("a.b/gpu", Answer(mounts=[marker]), "1")], ASK)


async def test_a_gpu_that_is_mounted_and_not_given_is_missing(nvidia: Path) -> None:
    answer = spec("/dev/nvidiactl")
    answer.mounts.add(container_path="/dev/nvidia1", host_path="/dev/nvidia1")
    with pytest.raises(AllocationUnknown, match="without /dev/nvidia1"):
        await sources_on(nvidia).devices([entry("nvidia.com/gpu", answer, ONE)], ASK)


async def test_what_only_counts_is_no_allocation_by_itself(tmp_path: Path) -> None:
    counts = [entry("volcano.sh/vgpu-memory", Answer(), "1", "2")]
    with pytest.raises(UnsupportedResource, match="vgpu-memory only counts beside another"):
        await sources_on(tmp_path).devices(counts, ASK)


async def test_names_that_mean_nothing_hide_no_contradiction_of_others(nvidia: Path) -> None:
    """HAMi's ids are no GPUs; the variable of its answer is, and the nodes must be that GPU's."""
    answer = spec("/dev/nvidiactl", "/dev/nvidia0")
    answer.envs["NVIDIA_VISIBLE_DEVICES"] = ONE
    with pytest.raises(AllocationUnknown, match="without /dev/nvidia1"):
        await sources_on(nvidia).devices([entry("nvidia.com/gpu", answer, "GPU-none-7")], ASK)


async def test_what_is_expected_and_not_shown_is_refused_with_both_sides(ascend: Path) -> None:
    sources = sources_on(ascend, live=shown(ascend, "davinci5", *SHARED))
    with pytest.raises(
        AllocationUnknown,
        match=r"/dev/davinci4.* is expected and the shadow pod has /dev/davinci5.*\(live\), without"
        " /dev/davinci4",
    ):
        await sources.devices([entry("huawei.com/Ascend910", ONE_CARD, "Ascend910-4")], ASK)


async def test_control_nodes_come_where_only_the_running_shadow_pod_shows_them(
    ascend: Path,
) -> None:
    sources = sources_on(ascend, live=shown(ascend, "davinci4", *SHARED))
    card = entry("huawei.com/Ascend910", spec("/dev/davinci4"), "Ascend910-4")
    devices = await sources.devices([card], ASK)
    assert paths(devices) == {"/dev/davinci4", *(f"/dev/{name}" for name in SHARED)}


async def test_another_card_that_is_shown_is_refused_with_both_sides(ascend: Path) -> None:
    live = shown(ascend, "davinci4", "davinci5", "davinci6", *SHARED)
    with pytest.raises(
        AllocationUnknown,
        match=r"/dev/davinci4.* is expected and the shadow pod has /dev/davinci4, /dev/davinci5,.*"
        r"\(live\), with /dev/davinci5, /dev/davinci6, which nothing says it was given",
    ):
        sources = sources_on(ascend, live=live)
        await sources.devices([entry("huawei.com/Ascend910", ONE_CARD, "Ascend910-4")], ASK)


@pytest.mark.parametrize(
    ("more", "devices"),
    [(("nvidia0",), 2), (("nvidia-caps/nvidia-cap1",), 2), (("dri/card0", "dri/card1"), 2)],
    ids=["another GPU", "another capability", "two GPUs' screens"],
)
async def test_more_devices_shown_than_the_kubelet_counts_are_refused(
    nvidia: Path, more: tuple[str, ...], devices: int
) -> None:
    own = ("nvidia2", "nvidia-caps/nvidia-cap336", "nvidia-caps/nvidia-cap337", "nvidiactl")
    answer = Answer(envs={"NVIDIA_VISIBLE_DEVICES": MIG})
    sources = sources_on(nvidia, live=shown(nvidia, *own, *more))
    with pytest.raises(
        AllocationUnknown,
        match=rf"the kubelet counts {MIG} and the shadow pod has .*\(live\), which is {devices} d",
    ):
        await sources.devices([entry("nvidia.com/mig-1g.10gb", answer, MIG)], ASK)
    sources = sources_on(nvidia, live=shown(nvidia, *own))
    found = await sources.devices([entry("nvidia.com/mig-1g.10gb", answer, MIG)], ASK)
    assert paths(found) == {f"/dev/{name}" for name in own}


async def test_devices_of_the_pods_other_resources_are_shown_rightly(
    nvidia: Path, ascend: Path
) -> None:
    both = [
        entry("huawei.com/Ascend910", ONE_CARD, "Ascend910-4"),
        entry(
            "huawei.com/Ascend310P", Answer(envs={"ASCEND_VISIBLE_DEVICES": "6"}), "Ascend310P-6"
        ),
    ]
    live = shown(ascend, "davinci4", "davinci6", *SHARED)
    one, other = await sources_on(ascend, live=live).devices(both, ASK)
    assert paths((one,)) == {"/dev/davinci4", *(f"/dev/{name}" for name in SHARED)}
    assert paths((other,)) == {"/dev/davinci6", *(f"/dev/{name}" for name in SHARED)}

    ids = (MIG, "MIG-b35e9a17-84c6-5f02-9d7b-2ae04c61f8d3")
    slices = [
        entry(f"nvidia.com/mig-{n}g", Answer(envs={"NVIDIA_VISIBLE_DEVICES": id_}), id_)
        for n, id_ in enumerate(ids)
    ]
    caps = [f"nvidia-caps/nvidia-cap{minor}" for minor in (336, 337, 345, 346)]
    live = shown(nvidia, "nvidia2", "nvidiactl", *caps)
    found = await sources_on(nvidia, live=live).devices(slices, ASK)
    assert paths(found) == {"/dev/nvidia2", "/dev/nvidiactl", *(f"/dev/{cap}" for cap in caps)}
    with pytest.raises(AllocationUnknown, match="which is 2 devices"):
        await sources_on(nvidia, live=live).devices(slices[:1], ASK)


@pytest.mark.parametrize("source", ["bundle", "live"])
async def test_what_confirms_adds_no_node_that_nobody_can_tell_from_a_device(
    tmp_path: Path, source: str
) -> None:
    for minor, name in enumerate(("gadget0", "gadget1")):
        vendors.make_node(tmp_path, {"path": f"/dev/{name}", "major": 240, "minor": minor})
    own = f"name: x\nresources: [example.com/*]\nconfirm: {source}\n"
    vendors.write(tmp_path, "/p/own.yaml", own)
    sources = replace(
        sources := sources_on(tmp_path, profiles=Profiles(tmp_path / "p")),
        readers={**sources.readers, source: shown(tmp_path, "gadget0", "gadget1")},
    )
    with pytest.raises(AllocationUnknown, match="with /dev/gadget1, which nothing says"):
        await sources.devices([entry("example.com/gadget", spec("/dev/gadget0"), "a")], ASK)


VOLCANO = "volcano.sh/vgpu-number"
SLICE = {"NVIDIA_VISIBLE_DEVICES": ONE, "CUDA_DEVICE_MEMORY_LIMIT_0": "20000m"}


@pytest.mark.parametrize(
    ("annotations", "error", "message"),
    [
        (
            {"volcano.sh/vgpu-ids-new": f"{OTHER},NVIDIA,20000,30:"},
            ReservationLost,
            f"the scheduler decided {OTHER} and the device plugin answered {ONE}",
        ),
        (
            {"volcano.sh/vgpu-ids-new": f"{ONE},NVIDIA,1,1:{OTHER},NVIDIA,1,1:"},
            ReservationLost,
            "which is another pod's",
        ),
        ({}, ReservationLost, "bears none of volcano.sh/vgpu-ids-new"),
        ({"volcano.sh/devices-to-allocate": ""}, ReservationLost, "did its scheduler place it"),
    ],
    ids=["another's", "one of two", "no annotation", "an empty one"],
)
async def test_a_slice_that_is_not_proven_ours_is_given_back(
    nvidia: Path, annotations: Mapping[str, str], error: type[DeviceMountError], message: str
) -> None:
    ask = Ask(SHADOW, "team-a", accept_env_file=True)
    sources = sources_on(nvidia, annotations=annotations)
    with pytest.raises(error, match=message):
        await sources.devices([entry(VOLCANO, Answer(envs=SLICE), f"{OTHER}-4")], ask)


def of_pod(uid: str) -> deviceplugin_pb2.Mount:
    host_path = f"/usr/local/vgpu/vgpu/containers/{uid}_hold"
    return deviceplugin_pb2.Mount(container_path="/tmp/vgpu", host_path=host_path)


ANOTHER = "11111111-2222-4333-8444-555555555555"


@pytest.mark.parametrize(
    ("mounts", "message"),
    [
        ([of_pod(ANOTHER)], "5555_hold, which is another pod's"),
        ([of_pod(SHADOW.uid), of_pod(ANOTHER)], "5555_hold, which is another pod's"),
        ([], "without a mount at /tmp/vgpu, so nothing tells for which pod"),
    ],
    ids=["another pod's", "also another pod's", "nobody's"],
)
async def test_a_slice_of_the_same_gpu_that_may_be_made_for_another_pod_is_given_back(
    nvidia: Path, mounts: list[deviceplugin_pb2.Mount], message: str
) -> None:
    ask = Ask(SHADOW, "team-a", accept_env_file=True)
    sources = sources_on(nvidia, annotations={"volcano.sh/vgpu-ids-new": f"{ONE},NVIDIA,1,1:"})
    answer = Answer(envs=SLICE, mounts=mounts)
    with pytest.raises(ReservationLost, match=message):
        await sources.devices([entry(VOLCANO, answer, f"{ONE}-4")], ask)


async def test_a_slice_of_ours_comes_whatever_the_kubelets_ids_say(nvidia: Path) -> None:
    ask = Ask(SHADOW, "team-a", accept_env_file=True)
    annotations = {"volcano.sh/vgpu-ids-new": f"{ONE},NVIDIA,20000,30:"}
    counts = [
        entry("volcano.sh/vgpu-memory", Answer(), *(f"{OTHER}-memory-{n}" for n in range(3000))),
        entry("volcano.sh/vgpu-cores", Answer(), f"{OTHER}-core-0"),
    ]
    sources = sources_on(nvidia, annotations=annotations)
    mount = of_pod(SHADOW.uid)
    (nvidia / mount.host_path.lstrip("/")).mkdir(parents=True)
    slice_ = entry(VOLCANO, Answer(envs=SLICE, mounts=[mount]), f"{OTHER}-4")
    devices = await sources.devices([slice_, *counts], ask)
    assert "/dev/nvidia1" in paths(devices)
    assert [device.resource for device in devices] == [VOLCANO]
    assert [v.name for v in devices[0].edits.env] == ["CUDA_DEVICE_MEMORY_LIMIT_0"]


@pytest.mark.parametrize(
    ("resource", "answer", "error", "message"),
    [
        (VOLCANO, Answer(envs=SLICE), EnvFileNeeded, "reservation.acceptEnvFile"),
        (
            "nvidia.com/gpu",
            Answer(envs={"CUDA_MPS_PIPE_DIRECTORY": "/mps"}),
            UnsupportedResource,
            "nvidia.com/gpu: the GPU is shared by MPS",
        ),
        ("huawei.com/Ascend910-2c", Answer(), UnsupportedResource, "a vNPU cannot be given"),
    ],
)
async def test_what_is_refused_is_so_before_anything_is_waited_for(
    tmp_path: Path, resource: str, answer: Answer, error: type[DeviceMountError], message: str
) -> None:
    with pytest.raises(error, match=message):
        await sources_on(tmp_path).devices([entry(resource, answer, "a")], ASK)


async def test_a_profile_that_would_have_helped_and_is_bad_is_named(tmp_path: Path) -> None:
    vendors.write(tmp_path, "/p/own.yaml", "name: x\nresources: [example.com/*]\nallow: 1\n")
    sources = sources_on(tmp_path, profiles=Profiles(tmp_path / "p"))
    with pytest.raises(AllocationUnknown, match=r"profile generic.*own\.yaml:3: allow: is not kno"):
        await sources.devices([entry("example.com/gadget", Answer(envs={"A": "1"}), "a")], ASK)


async def test_a_profile_that_comes_late_is_used_by_the_next_read(tmp_path: Path) -> None:
    vendors.write(tmp_path, "/etc/gadget.conf", "")
    vendors.make_node(tmp_path, {"path": "/dev/g", "major": 240, "minor": 0})
    sources = sources_on(tmp_path, profiles=Profiles(tmp_path / "p"))
    answer = spec("/dev/g")
    answer.mounts.add(host_path="/etc/gadget.conf", container_path="/etc/gadget.conf")
    with pytest.raises(DeviceMountError, match=r"a profile whose alsoMounts names it$"):
        await sources.devices([entry("example.com/gadget", answer, "a")], ASK)
    vendors.write(tmp_path, "/p/own.yaml", "name: x\nresources: [example.com/*]\nalowMounts: []\n")
    vendors.write(tmp_path, "/p/other.yaml", "name: [")
    with pytest.raises(
        NotAllowed,
        match=r"names it; rejected .*/other\.yaml:1: is no YAML.*; rejected .*/own\.yaml:3: alowM",
    ):
        await sources.devices([entry("example.com/gadget", answer, "a")], ASK)
    (tmp_path / "p/other.yaml").unlink()
    own = "name: x\nresources: [example.com/*]\nallowMounts: [/etc/gadget.conf]\n"
    vendors.write(tmp_path, "/p/own.yaml", own)
    (device,) = await sources.devices([entry("example.com/gadget", answer, "a")], ASK)
    assert [m.host_path for m in device.edits.mounts] == ["/etc/gadget.conf"]


async def test_a_profiles_nodes_are_those_where_links_end(tmp_path: Path) -> None:
    vendors.make_node(tmp_path, {"path": "/dev/secret0", "major": 240, "minor": 0})
    vendors.make_link(tmp_path, "/dev/gadget0", "secret0")
    own = 'name: x\nresources: [example.com/*]\nallowNodes: ["/dev/gadget[0-9]+"]\n'
    vendors.write(tmp_path, "/p/own.yaml", own)
    sources = sources_on(tmp_path, profiles=Profiles(tmp_path / "p"))
    with pytest.raises(
        DeviceMountError, match="/dev/gadget0 is /dev/secret0, outside of allowNodes of profile x"
    ):
        await sources.devices([entry("example.com/gadget", spec("/dev/gadget0"), "a")], ASK)
