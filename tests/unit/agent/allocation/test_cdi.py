# SPDX-License-Identifier: Apache-2.0
"""CDI names to nodes, mounts, links, texts and variables, by spec files as vendors write them."""

import asyncio
import json
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import vendor_answers as vendors
from devicemount_agent.allocation.cdi import Cdi, names_in
from devicemount_agent.allocation.cdi_spec import parse
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.said import Answer, Said, Subject
from devicemount_agent.errors import AllocationUnknown, DeviceMountError, NotAllowed
from devicemount_agent.model import DeviceID, DeviceNumber, EnvVar, Link, ResourceName
from devicemount_node_api import deviceplugin_pb2
from readers import SHADOW, shipped_profiles

NAME = "example.com/gadget=g0"
CTK = json.loads((vendors.DATA / "cdi-nvidia-ctk.json").read_text())


def cdi_on(root: Path) -> Cdi:
    return Cdi(Host(root), (root / "etc/cdi", root / "var/run/cdi"))


async def read(
    root: Path,
    *names: str,
    resource: str = "example.com/gadget",
    env: Mapping[str, str] | None = None,
) -> Said:
    cdi_devices = [deviceplugin_pb2.CDIDevice(name=name) for name in names]
    answer = Answer(cdi_devices=cdi_devices, envs=env)
    name = ResourceName(resource)
    profile = shipped_profiles().of(name, answer.envs, ())
    subject = Subject(name, frozenset({DeviceID("g0")}), answer, profile, SHADOW.uid)
    said = await cdi_on(root).read(subject)
    assert said is not None
    return said


def spec(common: Mapping[str, Any] | None = None, **device: Any) -> dict[str, Any]:
    return {
        "cdiVersion": "1.1.0",
        "kind": "example.com/gadget",
        "containerEdits": common or {},
        "devices": [{"name": "g0", "containerEdits": device}],
    }


def place(root: Path, content: Mapping[str, Any], path: str = "/var/run/cdi/g.json") -> None:
    text = json.dumps(content) if path.endswith(".json") else yaml.safe_dump(dict(content))
    vendors.write(root, path, text)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    for number, name in enumerate(("g0", "g1")):
        (tmp_path / "dev").mkdir(exist_ok=True)
        os.mknod(tmp_path / "dev" / name, stat.S_IFCHR | 0o640, os.makedev(240, number))
    vendors.write(tmp_path, "/usr/lib/vendor/libg.so.1.2.3", "")
    vendors.make_link(tmp_path, "/usr/lib/vendor/libg.so.1", "libg.so.1.2.3")
    return tmp_path


@pytest.mark.parametrize(
    "case", [c for c in CTK["cases"] if "nodes" in c["expected"]], ids=lambda c: str(c["name"])
)
async def test_what_nvidia_ctk_writes_is_read(tmp_path: Path, case: Mapping[str, Any]) -> None:
    vendors.make_root(tmp_path, "nvidia")
    for mount in CTK["spec"]["containerEdits"]["mounts"]:
        vendors.write(tmp_path, mount["hostPath"], "")
    place(tmp_path, CTK["spec"], "/var/run/cdi/nvidia.yaml")
    said = await read(tmp_path, *case["input"]["cdi_devices"], resource="nvidia.com/gpu")
    expected = case["expected"]
    nodes = [*expected["nodes"], *expected["shared_nodes"]]
    assert {n.path for n in said.nodes} == {n["path"] for n in nodes}
    gids = {n.path: n.gid for n in said.nodes}
    assert all(gids[n["path"]] == n["gid"] for n in nodes if "gid" in n)
    links = {(link.path, link.target) for link in said.edits.links}
    assert {(link["path"], link["target"]) for link in expected["links"]} <= links
    assert [t.path for t in said.edits.overlaid] == ["/proc/driver/nvidia/params"]
    assert EnvVar("LD_LIBRARY_PATH", "/usr/lib/x86_64-linux-gnu") in said.edits.env
    assert len(said.edits.mounts) == len(CTK["spec"]["containerEdits"]["mounts"])


# What of the node changed since nvidia-ctk wrote the spec, and what we say. In the first case a
# container engine makes the node by the numbers of the spec, which are no driver's any more.
# The second it refuses as we do, when it makes the container.
CHANGES = {
    "stale major": (
        [{"path": "/dev/nvidia-uvm", "major": 508, "minor": 0}],
        [],
        "/dev/nvidia-uvm is 510:0 in the CDI spec and 508:0 on the node: the spec is out of date",
    ),
    "node gone": (
        [],
        ["/dev/nvidia-caps/nvidia-cap336"],
        "/dev/nvidia-caps/nvidia-cap336 does not exist on the node",
    ),
}


@pytest.mark.parametrize(
    "case", [c for c in CTK["cases"] if "nodes" not in c["expected"]], ids=lambda c: str(c["name"])
)
async def test_what_nvidia_ctk_wrote_and_is_no_more_so_is_refused(
    tmp_path: Path, case: Mapping[str, Any]
) -> None:
    made, gone, message = CHANGES[case["name"]]
    vendors.make_root(tmp_path, "nvidia")
    for mount in CTK["spec"]["containerEdits"]["mounts"]:
        vendors.write(tmp_path, mount["hostPath"], "")
    for node in made:
        vendors.make_node(tmp_path, node)
    for path in gone:
        (tmp_path / path.lstrip("/")).unlink()
    place(tmp_path, CTK["spec"], "/var/run/cdi/nvidia.yaml")
    with pytest.raises(AllocationUnknown, match=message):
        await read(tmp_path, *case["input"]["cdi_devices"], resource="nvidia.com/gpu")


async def test_what_nvidias_own_generator_wrote_is_read(tmp_path: Path) -> None:
    vendors.make_root(tmp_path, "nvidia")
    written = json.loads((vendors.DATA.parent / "cdi/nvidia-nvcdi.json").read_text())
    for mount in written["containerEdits"]["mounts"]:
        vendors.write(tmp_path, mount["hostPath"], "")
    place(tmp_path, written, "/var/run/cdi/k8s.device-plugin.nvidia.com-gpu.json")
    gpu, mig = (f"{written['kind']}={written['devices'][n]['name']}" for n in (0, 3))
    said = await read(tmp_path, gpu, mig, resource="nvidia.com/gpu")
    assert {node.path for node in said.nodes} == {
        f"/dev/{name}"
        for name in (
            *("nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools"),
            *("nvidia1", "dri/card1", "dri/renderD128"),
            *("nvidia2", "nvidia-caps/nvidia-cap336", "nvidia-caps/nvidia-cap337"),
        )
    }
    assert len(said.edits.mounts) == len(written["containerEdits"]["mounts"])
    links = {link.path: link.target for link in said.edits.links}
    assert links["/usr/lib/x86_64-linux-gnu/libcuda.so.1"] == "libcuda.so.575.57.08"
    assert links["/dev/dri/by-path/pci-0000:17:00.0-card"] == "../card1"
    assert [text.path for text in said.edits.overlaid] == ["/proc/driver/nvidia/params"]


# Where NVIDIA's toolkit looks for the driver's configuration first (internal/discover/graphics.go,
# gds.go, internal/lookup/root), and at other places only where it is not there.
CONFIGS = (
    "/etc/OpenCL/vendors/nvidia.icd",
    "/etc/X11/xorg.conf.d/10-nvidia.conf",
    "/etc/X11/xorg.conf.d/nvidia-drm-outputclass.conf",
    "/etc/cufile.json",
    "/etc/egl/egl_external_platform.d/09_nvidia_wayland2.json",
    "/etc/egl/egl_external_platform.d/10_nvidia_wayland.json",
    "/etc/egl/egl_external_platform.d/15_nvidia_gbm.json",
    "/etc/egl/egl_external_platform.d/20_nvidia_xcb.json",
    "/etc/egl/egl_external_platform.d/20_nvidia_xlib.json",
    "/etc/glvnd/egl_vendor.d/10_nvidia.json",
    "/etc/nvidia/current/nvidia-drm-outputclass.conf",
    "/etc/nvidia/nvoptix.bin",
    "/etc/vulkan/icd.d/nvidia_icd.json",
    "/etc/vulkan/icd.d/nvidia_icd.x86_64.json",
    "/etc/vulkan/icd.d/nvidia_layers.json",
    "/etc/vulkan/implicit_layer.d/nvidia_layers.json",
)


@pytest.mark.parametrize(
    ("resource", "env"),
    [
        ("nvidia.com/gpu", {}),
        ("nvidia.com/gpu", {"CUDA_DEVICE_MEMORY_LIMIT_0": "1m"}),
        ("volcano.sh/vgpu-number", {"CUDA_DEVICE_MEMORY_LIMIT_0": "1m"}),
    ],
    ids=["nvidia", "hami", "volcano"],
)
async def test_the_drivers_configuration_comes_from_etc_too(
    tmp_path: Path, resource: str, env: dict[str, str]
) -> None:
    vendors.make_root(tmp_path, "nvidia")
    library = "/usr/lib/x86_64-linux-gnu/libcuda.so.575.57.08"
    options = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
    for path in (*CONFIGS, library, "/etc/nvidia/ClientConfigToken/client.tok"):
        vendors.write(tmp_path, path, "")
    mounts = [
        {"hostPath": path, "containerPath": path, "options": options}
        for path in (*CONFIGS, library)
    ]
    nodes = [{"path": "/dev/nvidia0"}]
    place(tmp_path, spec({"mounts": mounts, "deviceNodes": nodes}))
    said = await read(tmp_path, NAME, resource=resource, env=env)
    assert {m.host_path for m in said.edits.mounts} == {*CONFIGS, library}
    assert all(m.read_only for m in said.edits.mounts)
    mounts[0]["hostPath"] = "/etc/nvidia/ClientConfigToken/client.tok"
    place(tmp_path, spec({"mounts": mounts, "deviceNodes": nodes}))
    with pytest.raises(NotAllowed, match="needs a profile whose alsoMounts names it"):
        await read(tmp_path, NAME, resource=resource, env=env)


@pytest.mark.parametrize(
    ("options", "read_only", "no_exec"),
    [
        ([], False, False),
        (["rw", "bind"], False, False),
        (["ro", "nosuid", "nodev", "rbind", "rprivate"], True, False),
        (["nosuid", "nodev", "rbind", "rprivate", "noexec"], False, True),
        (["rro", "noexec"], True, True),
    ],
    ids=["none", "writable", "nvidia's files", "nvidia's sockets", "read-only with all below"],
)
async def test_what_the_options_of_a_mount_take_away_stays_away(
    node: Path, options: list[str], *, read_only: bool, no_exec: bool
) -> None:
    one = {
        "hostPath": "/usr/lib/vendor",
        "containerPath": "/opt/g",
        "options": options,
        "type": "bind",
    }
    place(node, spec(mounts=[one], deviceNodes=[{"path": "/dev/g0"}]))
    (mount,) = (await read(node, NAME)).edits.mounts
    assert (mount.read_only, mount.no_exec) == (read_only, no_exec)
    both = [one, {**one, "options": ["ro", "noexec"]}]
    place(node, spec(mounts=both, deviceNodes=[{"path": "/dev/g0"}]))
    (mount,) = (await read(node, NAME)).edits.mounts
    assert (mount.read_only, mount.no_exec) == (True, True)


async def test_groups_are_left_out_and_logged(node: Path, caplog: pytest.LogCaptureFixture) -> None:
    place(node, spec(additionalGids=[44, 109], deviceNodes=[{"path": "/dev/g0"}]))
    with caplog.at_level(logging.INFO):
        assert len((await read(node, NAME)).nodes) == 1
    assert f"left out groups cdi='{NAME}' gids='[44, 109]'" in caplog.text


async def test_a_limit_of_memory_is_refused_wherever_it_was_said(node: Path) -> None:
    limits = hook("apply-cuda-memory-limits", "--gpu-id", "GPU-1")
    plain = {"deviceNodes": [{"path": "/dev/g0"}], "hooks": [limits]}
    place(node, spec(**plain))
    assert (await read(node, NAME, env={"OTHER": "1"})).nodes
    with pytest.raises(AllocationUnknown, match="apply-cuda-memory-limits"):
        await read(node, NAME, env={"NVIDIA_GPU_MEMORY_LIMIT": "1"})
    place(node, spec({"env": ["NVIDIA_GPU_MEMORY_REQUEST=1"]}, **plain))
    with pytest.raises(AllocationUnknown, match="apply-cuda-memory-limits"):
        await read(node, NAME)
    place(node, spec({"hooks": [limits]}, env=["NVIDIA_GPU_MEMORY_LIMIT=1"]))
    with pytest.raises(AllocationUnknown, match="apply-cuda-memory-limits"):
        await read(node, NAME)


async def test_a_spec_that_is_ignored_is_named_by_who_misses_its_device(node: Path) -> None:
    place(node, {**spec(), "cdiVersion": "1.2.0"}, "/etc/cdi/new.json")
    vendors.write(node, "/var/run/cdi/broken.yaml", "[")
    (node / "var/run/cdi/gone.json").symlink_to("nowhere")
    with pytest.raises(AllocationUnknown) as refused:
        await read(node, NAME)
    for told in (
        f"has {NAME} (yet); ignored ",
        "/etc/cdi/new.json: cdiVersion 1.2.0 is not known (up to 1.1.0)",
        "/var/run/cdi/broken.yaml: ",
        "/var/run/cdi/gone.json: cannot be read",
    ):
        assert told in str(refused.value)
    for number in range(3):
        vendors.write(node, f"/etc/cdi/a{number}.json", "{}")
    with pytest.raises(AllocationUnknown, match=r"a2.json: .*; ignored 3 more$"):
        await read(node, NAME)


async def test_spec_edits_come_once_and_before_the_devices(node: Path) -> None:
    content = spec({"env": ["A=spec"], "deviceNodes": [{"path": "/dev/g1"}]}, env=["A=device"])
    content["devices"].append({"name": "g1", "containerEdits": {}})
    place(node, content)
    said = await read(node, NAME, "example.com/gadget=g1")
    assert [n.path for n in said.nodes] == ["/dev/g1"]
    assert said.edits.env == (EnvVar("A", "device"),)


@pytest.mark.parametrize(
    ("written", "number", "access", "mode"),
    [
        ({"path": "/dev/g1"}, (240, 1), "rw", None),
        ({"path": "/dev/in", "hostPath": "/dev/g1"}, (240, 1), "rw", None),
        ({"path": "/dev/g0", "major": 240}, (240, 0), "rw", None),
        ({"path": "/dev/g1", "permissions": "r", "fileMode": 0o100444}, (240, 1), "r", 0o444),
        ({"path": "/dev/g1", "permissions": "none"}, (240, 1), "", None),
        ({"path": "/dev/no", "type": "c", "major": 240, "minor": 9}, (240, 9), "rw", 0o666),
    ],
    ids=[
        "all from the host",
        "hostPath",
        "minor 0 left out",
        "mode",
        "no access",
        "not on the host",
    ],
)
async def test_what_a_node_does_not_say_is_the_hosts(
    node: Path, written: Mapping[str, Any], number: tuple[int, int], access: str, mode: int | None
) -> None:
    place(node, spec(deviceNodes=[written]))
    (found,) = (await read(node, NAME)).nodes
    assert found.number == DeviceNumber("c", *number)
    assert (str(found.access), found.mode, found.path) == (access, mode, written["path"])


@pytest.mark.parametrize(
    ("written", "error", "message"),
    [
        ({"path": "/dev/no"}, AllocationUnknown, "/dev/no does not exist on the node"),
        ({"path": "/dev/no", "major": 240}, AllocationUnknown, "does not exist"),
        ({"path": "/dev/g1", "major": 241}, AllocationUnknown, "241:0 in the CDI spec and 240:1"),
        ({"path": "/dev/g1", "type": "b"}, AllocationUnknown, "of type b in the CDI spec only"),
        ({"path": "/dev/p", "type": "p"}, AllocationUnknown, "does not exist"),
        ({"path": "/dev/x", "hostPath": "/usr/lib"}, NotAllowed, "outside of /dev"),
        ({"path": "/x", "type": "c", "major": 240}, NotAllowed, "outside of what profile generic"),
        ({"path": "/dev/m", "type": "c", "major": 1, "minor": 1}, NotAllowed, "never granted"),
        ({"path": "../g1"}, AllocationUnknown, "is no path in a container"),
    ],
)
async def test_a_node_that_cannot_be_is_refused_with_the_reason(
    node: Path, written: Mapping[str, Any], error: type[DeviceMountError], message: str
) -> None:
    place(node, spec(deviceNodes=[written]))
    with pytest.raises(error, match=message):
        await read(node, NAME)


async def test_a_spec_that_comes_late_is_found_by_the_next_read(node: Path) -> None:
    reader = cdi_on(node)
    answer = Answer(cdi_devices=[deviceplugin_pb2.CDIDevice(name=NAME)])
    profile = shipped_profiles().usual("example.com/gadget")
    subject = Subject(ResourceName("example.com/gadget"), frozenset(), answer, profile, SHADOW.uid)
    with pytest.raises(AllocationUnknown, match=r"no CDI spec in .*/etc/cdi, .*/var/run/cdi has"):
        await reader.read(subject)
    place(node, spec(deviceNodes=[{"path": "/dev/g0"}]))
    assert (said := await reader.read(subject)) and [n.path for n in said.nodes] == ["/dev/g0"]
    place(node, spec(deviceNodes=[{"path": "/dev/g1"}, {"path": "/dev/g0"}]))
    assert (said := await reader.read(subject)) and len(said.nodes) == 2


async def test_what_is_no_file_is_not_waited_for(node: Path) -> None:
    place(node, spec(deviceNodes=[{"path": "/dev/g0"}]))
    os.mkfifo(node / "var/run/cdi/pipe.yaml")
    (node / "var/run/cdi/tty.json").symlink_to("/dev/tty")
    async with asyncio.timeout(5):
        assert [n.path for n in (await read(node, NAME)).nodes] == ["/dev/g0"]


@pytest.mark.parametrize("numbers", [{"major": 1 << 12}, {"minor": 1 << 20}, {"uid": 1 << 32}])
async def test_a_number_that_the_kernel_has_not_is_refused(
    node: Path, numbers: Mapping[str, int]
) -> None:
    place(node, spec(deviceNodes=[{"path": "/dev/no", "type": "c", "major": 240, **numbers}]))
    with pytest.raises(AllocationUnknown, match="no CDI spec in"):
        await read(node, NAME)


async def test_the_dynamic_directory_has_priority(node: Path) -> None:
    place(node, spec(deviceNodes=[{"path": "/dev/g0"}]), "/etc/cdi/g.yaml")
    place(node, spec(deviceNodes=[{"path": "/dev/g1"}]))
    assert [n.path for n in (await read(node, NAME)).nodes] == ["/dev/g1"]


async def test_two_specs_of_one_priority_are_a_conflict(node: Path) -> None:
    place(node, spec(deviceNodes=[{"path": "/dev/g0"}]))
    place(node, spec(deviceNodes=[{"path": "/dev/g1"}]), "/var/run/cdi/h.yaml")
    with pytest.raises(AllocationUnknown, match=r"specs conflict about .*g\.json, .*h\.yaml"):
        await read(node, NAME)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "kind: !!bool x",
        "[" * 5000,
        '{"cdiVersion": "9.9.9", "kind": "a/b", "devices": []}',
        "- &a [*a]",
        "\xff",
        '{"x": 1}',
    ],
)
async def test_a_broken_spec_hides_nothing_but_itself(
    node: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    place(node, spec(deviceNodes=[{"path": "/dev/g0"}]))
    vendors.write(node, "/var/run/cdi/broken.yaml", text)
    assert [n.path for n in (await read(node, NAME)).nodes] == ["/dev/g0"]
    assert "ignored CDI spec" in caplog.text
    assert "broken.yaml" in caplog.text


def hook(name: str, *arguments: str) -> dict[str, Any]:
    return {"hookName": "createContainer", "path": "/x/hook", "args": ["hook", name, *arguments]}


@pytest.mark.parametrize(
    "hooks",
    [
        [hook("enable-cuda-compat", "--host-driver-version=575")],
        [hook("update-application-profile")],
        [hook("apply-cuda-memory-limits", "--driver-root", "/", "--gpu-id", "GPU-1")],
        [hook("chmod", "--mode", "755", "--path", "/dev/dri")],
        [hook("hook", "create-symlinks")],
    ],
)
async def test_a_hook_that_changes_nothing_here_is_left_out(
    node: Path, hooks: list[dict[str, Any]]
) -> None:
    place(node, spec(deviceNodes=[{"path": "/dev/g0"}], hooks=hooks))
    assert len((await read(node, NAME)).nodes) == 1


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            {"hooks": [hook("setup-tenant", "--fast")]},
            r"g0: its CDI hook /x/hook \(setup-tenant --f",
        ),
        ({"hooks": [{"hookName": "prestart", "path": "/x/y"}]}, r"hook /x/y \(no arguments\)"),
        ({"hooks": [hook("chmod", "--mode", "4755")]}, r"\(chmod --mode 4755\)"),
        (
            {"env": ["NVIDIA_GPU_MEMORY_LIMIT=1"], "hooks": [hook("apply-cuda-memory-limits")]},
            "apply-cuda-memory-limits",
        ),
        ({"hooks": [hook("create-symlinks", "--link", "nothing")]}, "is no symlink"),
        ({"hooks": [hook("create-symlinks", "--link", "a::../b")]}, "is no path in a container"),
        ({"netDevices": [{"hostInterfaceName": "eth1", "name": "net1"}]}, "its CDI netDevices"),
        ({"intelRdt": {"closID": "a"}}, "its CDI intelRdt"),
        ({"intelRdt": {}}, "its CDI intelRdt"),
        (
            {"mounts": [{"hostPath": "tmpfs", "containerPath": "/dev/shm", "type": "tmpfs"}]},
            r"g0: its CDI mount /dev/shm is of type 'tmpfs': only files of the node",
        ),
        ({"env": ["NO_VALUE"]}, "is no variable"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    node: Path, edits: Mapping[str, Any], message: str
) -> None:
    place(node, spec(deviceNodes=[{"path": "/dev/g0"}], **edits))
    with pytest.raises(AllocationUnknown, match=message):
        await read(node, NAME)


async def test_libraries_are_found_as_the_loaders_cache_would_find_them(node: Path) -> None:
    library = "/usr/lib/vendor/libg.so.1.2.3"
    edits = {
        "mounts": [
            {"hostPath": library, "containerPath": "/opt/g/libg.so.1.2.3", "options": ["ro"]}
        ],
        "hooks": [
            hook("update-ldcache", "--folder", "/opt/g", "--folder=/opt/g/more"),
            hook("create-symlinks", "--link", "libg.so.1::/opt/g/libg.so"),
        ],
    }
    place(node, spec(edits, deviceNodes=[{"path": "/dev/g0"}]))
    said = (await read(node, NAME)).edits
    assert set(said.links) == {
        Link("/opt/g/libg.so.1", "libg.so.1.2.3"),
        Link("/opt/g/libg.so", "libg.so.1"),
    }
    assert said.env == (EnvVar("LD_LIBRARY_PATH", "/opt/g:/opt/g/more"),)
    assert [(m.path, m.host_path, m.read_only) for m in said.mounts] == [
        ("/opt/g/libg.so.1.2.3", library, True)
    ]


async def test_two_things_at_one_path_are_not_guessed_about(node: Path) -> None:
    links = [hook("create-symlinks", "--link", "a::/x/y", "--link", "b::/x/y")]
    place(node, spec(deviceNodes=[{"path": "/dev/g0"}], hooks=links))
    with pytest.raises(AllocationUnknown, match="two things at /x/y"):
        await read(node, NAME)


@pytest.mark.parametrize(
    ("annotations", "names"),
    [
        ({"cdi.k8s.io/x": f"{NAME},a.b/c=d"}, (NAME, "a.b/c=d")),
        ({"cdi.example.com/x": NAME}, (NAME,)),
        ({"other": "value", "note": "a=b"}, ()),
    ],
)
def test_names_stand_in_annotations_too(
    annotations: dict[str, str], names: tuple[str, ...]
) -> None:
    assert names_in(Answer(annotations=annotations)) == names


def test_a_name_that_is_none_is_said() -> None:
    with pytest.raises(AllocationUnknown, match="'gadget' is no CDI name"):
        names_in(Answer(annotations={"cdi.k8s.io/x": "gadget"}))
    with pytest.raises(AllocationUnknown, match=r"'a.b/c=d\\n' is no CDI name"):
        names_in(Answer(cdi_devices=[deviceplugin_pb2.CDIDevice(name="a.b/c=d\n")]))


def test_an_escape_that_is_no_text_is_refused() -> None:
    raw = r"""{"cdiVersion": "0.6.0", "kind": "a.b/c", "devices": [{"name": "d",
        "containerEdits": {"deviceNodes": [{"path": "/dev/\ud800"}]}}]}"""
    for is_json in (True, False):
        with pytest.raises(ValueError, match=r"surrogates not allowed|invalid Unicode"):
            parse(raw.encode(), is_json=is_json)


@given(st.binary(max_size=400))
def test_no_bytes_of_a_spec_raise_anything_but_that_it_is_none(raw: bytes) -> None:
    for is_json in (True, False):
        try:
            parse(raw, is_json=is_json)
        except ValueError:
            continue
