# SPDX-License-Identifier: Apache-2.0
"""Vendors' answers as cases: what the kubelet's checkpoint says, a node's files that fit it, and
what must come of it. Used by the unit tests and, through a real kubelet, by the cluster's.

Whatever is not named in REFUSED must be exactly what the file expects in the target, but for what
the vendor's own runtime would add at a container's start (`by_runtime`): that cannot be known from
an allocation, and a target without it is said to be Degraded/LibrariesMissing.
"""

import base64
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from devicemount_node_api import deviceplugin_pb2

DATA = Path(__file__).parent / "data/vendor-answers"
MAIN = "main"
_UNREGISTERED_MAJOR = 240  # for local and experimental use: open gives ENXIO
_WITH_DRAWING = "jit-cdi or CDI, together with the DRM nodes"

# Files without an answer of a device plugin: what is done with each.
NOT_ANSWERS = {
    "runtime-resolution": "nodes' files and what names mean on them: resolution(), test_resolvers",
    "cdi-nvidia-ctk": "a spec file of nvidia-ctk: test_cdi",
    "cdi-dra": "not used: what is allocated by claims (DRA) is not read yet",
}


# Not cases of ours. "legacy runtime" differs from main in the runtime alone, which no allocation
# tells; the others need a variable in the pod's spec, and a shadow pod's has none.
_NOT_OURS = {
    ("nvidia-envvar", "legacy runtime"),
    ("ascend-vnpu", "split by the runtime"),
    ("hami-vgpu", "control disabled"),
    ("volcano-vgpu", "control disabled"),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str  # the error's class
    text: str  # in its message
    unless_env_file: bool = False  # refused unless the env file is accepted
    is_at_graft: bool = False  # what was allocated is clear, but something else stands there


@dataclass(frozen=True, slots=True)
class Entry:
    """One resource of the shadow pod's container in the checkpoint."""

    resource: str
    ids: tuple[str, ...]
    answer: Mapping[str, Any]

    def response(self) -> bytes:
        answer = dict(self.answer)
        cdi = [deviceplugin_pb2.CDIDevice(name=name) for name in answer.pop("cdi_devices", [])]
        devices = [deviceplugin_pb2.DeviceSpec(**spec) for spec in answer.pop("devices", [])]
        mounts = [
            deviceplugin_pb2.Mount(
                **{k: m[k] for k in ("container_path", "host_path", "read_only")}
            )
            for m in answer.pop("mounts", [])
        ]
        return deviceplugin_pb2.ContainerAllocateResponse(
            devices=devices, mounts=mounts, cdi_devices=cdi, **answer
        ).SerializeToString()


@dataclass(frozen=True, slots=True)
class Case:
    vendor: str  # the file's name
    variant: str
    entries: tuple[Entry, ...]
    expected: Mapping[str, Any]  # expected_in_target
    annotations: Mapping[str, str] = field(default_factory=dict)  # of the pod, before Allocate

    def __str__(self) -> str:
        return f"{self.vendor}: {self.variant}"

    @property
    def refusal(self) -> Refusal | None:
        table = REFUSED.get(self.vendor, {})
        return table.get(self.variant, table.get("*"))

    def nodes(self) -> list[dict[str, str]]:
        """The device nodes that must be in the target, by what was answered."""
        return [
            node
            for node in (*self.expected["nodes"], *self.expected["shared_nodes"])
            if "runtime is in use" not in node.get("when", "")
            and "untime in use" not in node.get("when", "")
        ]

    def mounts(self) -> list[dict[str, Any]]:
        return [mount for mount in self.expected["mounts"] if not self.by_runtime(mount)]

    def links(self) -> list[dict[str, str]]:
        return [
            link
            for link in self.expected["links"]
            if link["target"] and link.get("when") in {None, _WITH_DRAWING, *self._with_libraries()}
        ] + self._by_path_links()

    def _with_libraries(self) -> tuple[str, ...]:
        return ("libraries grafted",) if self.has_cdi() else ()

    def _by_path_links(self) -> list[dict[str, str]]:
        """The links beside a GPU's DRM nodes, which the files of slices do not repeat."""
        if self.vendor not in {"hami-vgpu", "volcano-vgpu"}:
            return []
        paths = {node["path"] for node in self.nodes()}
        links: list[dict[str, str]] = resolution()["nvidia"]["fake_root"]["links"]
        drawing = [link for link in links if link["path"].startswith("/dev/dri/")]
        return [x for x in drawing if x["target"].replace("..", "/dev/dri") in paths]

    def by_runtime(self, mount: Mapping[str, Any]) -> bool:
        """Tell what the vendor's runtime adds by itself: libraries that no answer names."""
        answered = {m["container_path"] for e in self.entries for m in e.answer["mounts"]}
        return not self.has_cdi() and mount["container_path"] not in answered

    def brings_libraries(self) -> bool:
        return self.has_cdi() and bool(self.expected["mounts"])

    def has_cdi(self) -> bool:
        return bool(self.cdi_names())

    def cdi_names(self) -> list[str]:
        names: list[str] = []
        for entry in self.entries:
            names += entry.answer["cdi_devices"]
            for value in entry.answer["annotations"].values():
                names += value.split(",")
        return list(dict.fromkeys(names))

    def env_that_matters(self) -> dict[str, str]:
        """Without what the runtime computes for a container of its own."""
        matters = dict(self.expected["env_that_matters"])
        matters.pop("LD_LIBRARY_PATH", None)
        return matters


def cases() -> list[Case]:
    """Every answer of every file. A request that the plugin refuses has none."""
    return [case for path in sorted(DATA.glob("*.json")) for case in _cases_in(path)]


def checkpoint(entries: tuple[Entry, ...], *, pod_uid: str, container: str = "hold") -> bytes:
    """The kubelet's file, as it writes it."""
    data = {
        "PodDeviceEntries": [
            {
                "PodUID": pod_uid,
                "ContainerName": container,
                "ResourceName": entry.resource,
                "DeviceIDs": {"-1": list(entry.ids)},
                "AllocResp": base64.b64encode(entry.response()).decode(),
            }
            for entry in entries
        ],
        "RegisteredDevices": {entry.resource: list(entry.ids) for entry in entries},
    }
    return json.dumps({"Data": data, "Checksum": 1}).encode()


MIG_UNRESOLVED = Refusal("AllocationUnknown", "cannot be resolved from /proc")  # without NVML
LIVE_ONLY = Refusal("AllocationUnknown", "live shows no device")  # unless the shadow pod runs so
_ENV_ONLY = Refusal("AllocationUnknown", "answered environment variables, no device nodes")
_LIMITS = Refusal("EnvFileNeeded", "CUDA_DEVICE_MEMORY_LIMIT_0", unless_env_file=True)
_VNPU = Refusal("UnsupportedResource", "a vNPU cannot be given to a running container")
_DECIDED = Refusal("UnsupportedResource", "another scheduler (Volcano, HAMi) decided by an annot")
_QUOTA = Refusal("UnsupportedResource", "shared by quotas")

_NEW_MIG = (
    MAIN,
    "single strategy",
    "MIG time-slicing",
    "profile with attribute",
    "legacy runtime",
)

REFUSED: dict[str, dict[str, Refusal]] = {
    "nvidia-mig": dict.fromkeys(_NEW_MIG, MIG_UNRESOLVED),
    "nvidia-mps": {"*": Refusal("UnsupportedResource", "shared by MPS")},
    "nvidia-cdi-cri": {"spec file gone": Refusal("AllocationUnknown", "no CDI spec in")},
    "hami-vgpu": {"*": _LIMITS, "MIG operating mode": MIG_UNRESOLVED},
    "volcano-vgpu": {
        "*": _LIMITS,
        "MIG mode": Refusal("AllocationUnknown", "no annotation of the scheduler can prove"),
    },
    "ascend-envvar": {"A5": LIVE_ONLY},
    "ascend-vnpu": {"*": _VNPU},
    "ascend-volcano": {"*": _DECIDED, "soft share": _QUOTA},
    "ascend-hami": {
        MAIN: _DECIDED,
        "vNPU template": _VNPU,
        "soft mode": _QUOTA,
    },
    "cambricon": {
        "runtime": _ENV_ONLY,
        "runtime with MIM or sMLU": _ENV_ONLY,
        "CDI": Refusal("AllocationUnknown", "no CDI spec in"),
    },
    "enflame-gcushare": {"*": _ENV_ONLY},
    "moffett": {
        "stand-in A, empty answer": Refusal(
            "AllocationUnknown", "answered nothing, no device nodes"
        )
    },
    "rebellions": {"second attach": Refusal("PathConflict", "", is_at_graft=True)},
    "sriov-netdev": {
        MAIN: _ENV_ONLY,
        "CDI": Refusal("AllocationUnknown", "no device nodes"),
    },
    "smarter": {"nvidia-gpu": _ENV_ONLY},
    "squat-generic": {
        "group with node and file": Refusal("NotAllowed", "a profile whose alsoMounts names it")
    },
}


def _cases_in(path: Path) -> Iterator[Case]:
    if path.stem in NOT_ANSWERS:
        return
    content = json.loads(path.read_text())
    for case in (content, *content.get("variants", [])):
        found = case.get("kubelet_checkpoint")
        if found is None or found["device_ids"] == "unknown":
            continue
        if (path.stem, case.get("name")) in _NOT_OURS:
            continue
        annotations = case.get("pod_annotations_written_or_read") or {}
        if not isinstance(annotations, dict):
            annotations = {}
        others = case.get("other_checkpoint_entries", [])
        yield Case(
            vendor=path.stem,
            variant=case.get("name", MAIN),
            entries=tuple(
                Entry(e["resource"], tuple(e["device_ids"]), e["allocate_response"])
                for e in (found, *others)
            ),
            expected=case["expected_in_target"],
            annotations=annotations.get("before_allocate", annotations)
            or _decided(path.stem, found),
        )


def _decided(vendor: str, found: Mapping[str, Any]) -> dict[str, str]:
    """The scheduler's annotation of a variant whose file does not repeat it."""
    key = {
        "hami-vgpu": "hami.io/vgpu-devices-to-allocate",
        "volcano-vgpu": "volcano.sh/devices-to-allocate",
        "ascend-volcano": found["resource"],
    }.get(vendor)
    names = found["allocate_response"]["envs"].get("NVIDIA_VISIBLE_DEVICES", "").split(",")
    if not all(name.startswith("GPU-") for name in names):
        names = [id_.rpartition("-")[0] for id_ in found["device_ids"]]
    return {key: "".join(f"{name},NVIDIA,20000,30:" for name in names)} if key else {}


# ---- a node's files


@cache
def resolution() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DATA / "runtime-resolution.json").read_text())
    return content


def mig_table() -> dict[str, dict[str, Any]]:
    """Return what NVML of the fake node says of new MIG ids: parent, gi and ci of each."""
    found: dict[str, dict[str, Any]] = {}
    for case in resolution()["nvidia"]["cases"]:
        found.update(case["input"].get("mig_table", {}))
    return found


def make_root(root: Path, vendor: str) -> None:
    """The fake root of runtime-resolution.json for "nvidia" or "ascend"."""
    fake = resolution()[vendor]["fake_root"]
    for path, text in fake["files"].items():
        write(root, path, text)
    for path in fake["empty_files"]:
        write(root, path, "")
    for path in fake["directories"]:
        (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for link in fake["links"]:
        make_link(root, link["path"], link["target"])
    for node in fake["device_nodes"]:
        make_node(root, node)


def make_node(root: Path, node: Mapping[str, Any]) -> None:
    path = root / node["path"].lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    kind = stat.S_IFBLK if node.get("type") == "b" else stat.S_IFCHR
    mode = int(node.get("mode", "0600"), 8)
    os.mknod(path, kind | mode, os.makedev(node["major"], node["minor"]))
    path.chmod(mode)


def make_link(root: Path, path: str, target: str) -> None:
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


def write(root: Path, path: str, text: str) -> None:
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def populate(root: Path, case: Case) -> None:
    """Make everything of the node that the case speaks of."""
    for vendor, prefixes in {
        "nvidia": ("nvidia", "hami", "volcano"),
        "ascend": ("ascend",),
    }.items():
        if case.vendor.startswith(prefixes):
            make_root(root, vendor)
    _make_devices(root, case)
    _make_files(root, case)
    if case.has_cdi() and not (case.refusal and "no CDI spec" in case.refusal.text):
        for number, spec in enumerate(cdi_specs(case)):
            write(root, f"/var/run/cdi/{number}.json", json.dumps(spec))


def _make_devices(root: Path, case: Case) -> None:
    paths = [spec["host_path"] for e in case.entries for spec in e.answer["devices"]]
    paths += [
        node["host_path"] for node in (*case.expected["nodes"], *case.expected["shared_nodes"])
    ]
    if "/dev/snd" in paths:  # a directory as a device
        paths = ["/dev/snd/controlC0", "/dev/snd/pcmC0D0p"]
    for number, path in enumerate(dict.fromkeys(paths)):
        place = root / path.lstrip("/")
        if "<" in path or place.exists():
            continue
        known = root / "dev" / path.rpartition("/dev/")[2]
        rdev = known.stat().st_rdev if known.exists() else os.makedev(_UNREGISTERED_MAJOR, number)
        major, minor = os.major(rdev), os.minor(rdev)
        make_node(root, {"path": path, "major": major, "minor": minor, "mode": "0660"})


def _make_files(root: Path, case: Case) -> None:
    paths = [m["host_path"] for e in case.entries for m in e.answer["mounts"]]
    paths += [m["host_path"] for m in case.expected["mounts"]]
    for path in dict.fromkeys(paths):
        place = root / path.lstrip("/")
        if os.path.lexists(place) or path == "/dev/null":
            continue
        if "/by-path/pci-" in path:
            make_link(root, path, f"../{_by_path_target(root, path)}")
        elif path.endswith("/") or (
            not PurePosixPath(path).suffix and "." not in path.rpartition("/")[2]
        ):
            place.mkdir(parents=True, exist_ok=True)
        else:
            write(root, path, "")


def _by_path_target(root: Path, path: str) -> str:
    """The first card is at the lowest address."""
    index = 1 if "9a" in path else 0
    return f"renderD{128 + index}" if path.endswith("render") else f"card{index}"


def cdi_spec(case: Case) -> dict[str, Any]:
    """A CDI spec with the case's names: what all have in common, all else in the first device."""
    names = [name.rpartition("=") for name in case.cdi_names()]
    links = case.links()
    folders = sorted(
        {
            str(PurePosixPath(link["path"]).parent)
            for link in links
            if link.get("when") == "libraries grafted"
        }
    )
    hooks = (
        [_hook("update-ldcache", *(w for f in folders for w in ("--folder", f)))] if folders else []
    )
    if case.expected.get("proc_files"):
        hooks.append(_hook("disable-device-node-modification"))
    made = [x for x in links if x.get("by") != "ldcache update or link"]
    for link in made:
        hooks.append(_hook("create-symlinks", "--link", f"{link['target']}::{link['path']}"))
    common = {
        "env": ["NVIDIA_VISIBLE_DEVICES=void"] if case.vendor.startswith("nvidia") else [],
        "deviceNodes": [_cdi_node(node) for node in case.expected["shared_nodes"]],
        "mounts": [
            {
                "hostPath": m["host_path"],
                "containerPath": m["container_path"],
                "options": m.get("options", ["ro", "bind"] if m["read_only"] else ["bind"]),
            }
            for m in case.expected["mounts"]
        ],
        "hooks": hooks,
    }
    own = {"deviceNodes": [_cdi_node(node) for node in case.expected["nodes"]]}
    devices = [
        {"name": name, "containerEdits": own if i == 0 else {}}
        for i, (_, _, name) in enumerate(names)
    ]
    return {
        "cdiVersion": "0.7.0",
        "kind": names[0][0],
        "containerEdits": common,
        "devices": devices,
    }


def cdi_specs(case: Case) -> list[dict[str, Any]]:
    """One spec a kind: the first kind brings everything."""
    spec = cdi_spec(case)
    kinds = list(dict.fromkeys(name.rpartition("=")[0] for name in case.cdi_names()))
    specs = []
    for kind in kinds:
        named = zip(case.cdi_names(), spec["devices"], strict=True)
        devices = [device for name, device in named if name.startswith(f"{kind}=")]
        common = spec["containerEdits"] if kind == kinds[0] else {}
        specs.append({**spec, "kind": kind, "containerEdits": common, "devices": devices})
    return specs


def _cdi_node(node: Mapping[str, str]) -> dict[str, str]:
    spec = {"path": node["path"], "permissions": node["access"]}
    return spec if node["host_path"] == node["path"] else {**spec, "hostPath": node["host_path"]}


def _hook(name: str, *arguments: str) -> dict[str, Any]:
    return {
        "hookName": "createContainer",
        "path": "/usr/bin/nvidia-cdi-hook",
        "args": ["nvidia-cdi-hook", name, *arguments],
    }
