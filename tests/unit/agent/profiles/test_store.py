# SPDX-License-Identifier: Apache-2.0
"""Profiles of an administrator: over ours, and rejected with file, line and reason."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import force_setattr

from devicemount_agent.profiles.document import DocumentError, parse
from devicemount_agent.profiles.paths import NEVER_NODES, is_never_node
from devicemount_agent.profiles.profile import Profile
from devicemount_agent.profiles.store import SHIPPED, Profiles

OWN = """\
name: gadget
resources: [example.com/gadget]
allowNodes: ["/dev/gadget[0-9]+"]
"""


def write(directory: Path, text: str, name: str = "own.yaml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


@pytest.fixture
def profiles(tmp_path: Path) -> Profiles:
    return Profiles(tmp_path)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda p: p.stem)
def test_each_of_ours_says_how_it_is_known(path: Path) -> None:
    text = path.read_text()
    assert parse(text.encode()).content["name"] == path.stem
    assert "\n# Known: " in text
    assert "\nknown: " in text


def test_whatever_serves_nvidias_devices_mounts_the_same() -> None:
    nvidia, *others = (
        parse((SHIPPED / f"{name}.yaml").read_bytes()).content["alsoMounts"]
        for name in ("nvidia", "hami-vgpu", "volcano-vgpu")
    )
    assert nvidia
    assert others == [nvidia, nvidia]


@pytest.mark.parametrize(
    ("resource", "env", "name"),
    [
        ("nvidia.com/gpu", {}, "nvidia"),
        ("nvidia.com/gpu.shared", {}, "nvidia"),
        ("nvidia.com/mig-1g.10gb", {}, "nvidia"),
        ("nvidia.com/gpu", {"CUDA_DEVICE_MEMORY_LIMIT_0": "1m"}, "hami-vgpu"),
        ("nvidia.com/gpu", {"CUDA_MPS_PIPE_DIRECTORY": "/mps"}, "nvidia-mps"),
        ("nvidia.com/GA102GL_A10", {}, "generic"),
        ("huawei.com/Ascend910", {"ASCEND_RUNTIME_OPTIONS": ""}, "ascend"),
        ("huawei.com/Ascend910", {"ASCEND_RUNTIME_OPTIONS": "NODRV,VIRTUAL"}, "ascend-vnpu-split"),
        ("huawei.com/Ascend910-2c", {}, "ascend-vnpu"),
        ("huawei.com/npu", {}, "ascend-a5"),
        ("example.com/gadget", {}, "generic"),
    ],
)
def test_the_profile_that_names_a_resource_most_closely_serves_it(
    profiles: Profiles, resource: str, env: dict[str, str], name: str
) -> None:
    assert profiles.of(resource, env, ()).name == name


def test_a_file_is_noticed_when_it_comes_changes_and_goes(
    tmp_path: Path, profiles: Profiles
) -> None:
    assert profiles.usual("example.com/gadget").name == "generic"
    path = write(tmp_path, OWN)
    assert profiles.usual("example.com/gadget").name == "gadget"
    path.write_text(OWN.replace("name: gadget", "name: gadgets"))
    assert profiles.usual("example.com/gadget").name == "gadgets"
    path.unlink()
    assert profiles.usual("example.com/gadget").name == "generic"


def test_the_links_of_a_configmap_are_followed(tmp_path: Path, profiles: Profiles) -> None:
    for number, name in enumerate(("gadget", "gizmo")):
        version = tmp_path / f"..{number}"
        version.mkdir()
        write(version, OWN.replace("name: gadget", f"name: {name}"))
        (tmp_path / "..new").symlink_to(version.name)
        (tmp_path / "..new").rename(tmp_path / "..data")
        if not (tmp_path / "own.yaml").is_symlink():
            (tmp_path / "own.yaml").symlink_to("..data/own.yaml")
        assert profiles.usual("example.com/gadget").name == name


def test_a_file_of_our_profiles_name_changes_only_what_it_says(
    tmp_path: Path, profiles: Profiles
) -> None:
    ours = profiles.usual("nvidia.com/gpu")
    write(tmp_path, "name: nvidia\nallowMounts: [/usr/lib/nvidia]\n")
    merged = profiles.usual("nvidia.com/gpu")
    assert merged.allow_mounts == ("/usr/lib/nvidia",)
    assert (merged.source, merged.allow_nodes) == (ours.source, ours.allow_nodes)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("name: [", 1, "is no YAML"),
        ("name: x\n\tresources: []\n", 2, "is no YAML"),
        ("- name: x\n", 1, "is not one profile"),
        ("", 1, "is not one profile"),
        (f"{OWN}allowNode: []\n", 4, "allowNode: is not known: remove it or correct its spelling"),
        (f"{OWN}allow_mounts: []\n", 4, "is not known"),
        (f"{OWN}name: other\n", 4, "has 'name' twice"),
        (f"{OWN}ignoreEnv: &a [A]\nignoreMounts: *a\n", 4, "has an alias"),
        ("name: x\n", 1, "resources: is required"),
        (f"{OWN}source: [checkpoint, guess]\n", 4, "source.1: Invalid enum value 'guess'"),
        (f"{OWN}serialised: yes\n", 4, "serialised: "),
        (f"{OWN}countsOnly: 1\n", 4, "countsOnly: Expected `bool`"),
        (f"{OWN}allowMounts:\n- /opt/x\n- /\n", 6, "allowMounts.1: is the node's own"),
        (f"{OWN}allowNodes: [['/dev/x']]\n", 4, "has 'allowNodes' twice"),
        (f"{OWN}ignoreEnv:\n- A\n- [B]\n", 6, "ignoreEnv.1: Expected `str`, got `array`"),
        (f"{OWN}driverLibraries: {{sonames: [a]}}\n", 4, "driverLibraries.advice: is required"),
        (f"{OWN}pciVendor: '0X10de'\n", 4, "pciVendor: Expected `str` matching"),
        (f"{OWN}allowMounts: [/etc]\n", 4, "is the node's own"),
        (f"{OWN}allowMounts: [/var/lib/kubelet/pods]\n", 4, "is the node's own"),
        (f"{OWN}allowMounts: [/run/containerd/containerd.sock]\n", 4, "is the node's own"),
        (f"{OWN}allowMounts: [/opt/../etc]\n", 4, "must be a plain absolute path"),
        ("name: x\nresources: ['a b']\n", 2, "resources.0: must be a resource name"),
        ("name: X!\nresources: [a]\n", 1, "name: must be of lower-case letters"),
        (f"{OWN}ignoreEnv: {{{{ .Values.env }}}}\n", 4, "whose name is no word"),
        ("? [name]\n: x\n", 1, "whose name is no word"),
        ("name: !!bool x\n", 1, "is no YAML"),
        (f"{OWN}1: x\n", 4, "whose name is no word"),
        (f'{OWN}refused: "\\ud800"\n', 1, "is no YAML"),
        (f"{OWN}known: ' - at `$.name'\n", 4, "known: Invalid enum value ' - at `$.name'"),
        (
            "name: x\nresources: [a]\nallowNodes: ['a{99999999999}']\n",
            3,
            "allowNodes.0: is no regular expression: the repetition number is too large",
        ),
        (f"{OWN}when: {{}}\n", 4, "when: must name env or mounts"),
        (f"{OWN}alsoMounts: [/etc/ssh]\n", 4, "alsoMounts.0: is the node's own"),
        (
            f"{OWN}when: {{env: [A]}}\nserialised: node\n",
            5,
            "serialised: has no effect beside when: it belongs into a profile without",
        ),
        (
            f"{OWN}driverLibraries: {{sonames: [a], advice: b}}\nwhen: {{env: [A]}}\n",
            4,
            "driverLibraries: has no effect beside when",
        ),
        (
            f"{OWN}when: {{env: [A]}}\nversionCheck: {{what: X, node: /a, container: b}}\n",
            5,
            "versionCheck: has no effect beside when",
        ),
        ("name: hami-vgpu\nserialised: node\n", 2, "serialised: has no effect beside when"),
        (
            f"{OWN}decidedBy: {{annotations: [a], env: B, pattern: 'GPU-['}}\n",
            4,
            "decidedBy.pattern: is no regular expression",
        ),
        (
            f"{OWN}decidedBy: {{annotations: [a], env: B, pattern: '(GPU-)?[0-9]+'}}\n",
            4,
            "decidedBy.pattern: must match whole ids",
        ),
    ],
)
def test_a_mistake_is_named_by_file_line_and_reason(
    tmp_path: Path, profiles: Profiles, text: str, line: int, reason: str
) -> None:
    bad = write(tmp_path, text, "bad.yaml")
    write(tmp_path, OWN)
    assert profiles.usual("example.com/gadget").name == "gadget"  # the rest keeps working
    assert profiles.usual("nvidia.com/gpu").name == "nvidia"
    (fault,) = profiles._loaded.faults
    assert (fault.path, fault.line) == (bad, line)
    assert reason in fault.reason


@pytest.mark.parametrize(
    "change", ["resources: [example.com/gadget]", "when: {env: [GADGET]}"], ids=["fewer", "when"]
)
def test_who_narrows_the_generic_profile_leaves_no_resource_without_one(
    tmp_path: Path, profiles: Profiles, change: str
) -> None:
    write(tmp_path, f"name: generic\nallowNodes: [/dev/gadget]\n{change}\n")
    for found in (profiles.usual("example.com/other"), profiles.of("example.com/other", {}, ())):
        assert (found.name, found.allow_nodes) == ("generic", None)
    assert profiles.of("example.com/gadget", {"GADGET": "1"}, ()).allow_nodes == ("/dev/gadget",)


def test_of_two_that_name_a_resource_alike_the_administrators_serves_it(
    tmp_path: Path, profiles: Profiles
) -> None:
    write(tmp_path, OWN.replace("example.com/gadget", "nvidia.com/gpu"))
    assert profiles.usual("nvidia.com/gpu").name == "gadget"
    assert profiles.of("nvidia.com/gpu", {}, ()).name == "gadget"
    assert profiles.of("nvidia.com/gpu", {"CUDA_MPS_PIPE_DIRECTORY": "/x"}, ()).name == "nvidia-mps"


@pytest.mark.parametrize(
    ("path", "is_never"),
    [
        *((node, True) for node in NEVER_NODES),
        *(
            (node, True)
            for node in (
                "/dev/sdb2",
                "/dev/sdaa",
                "/dev/nvme3n1p2",
                "/dev/ng0n1",
                "/dev/dm-12",
                "/dev/md127p1",
                "/dev/mapper/data-var",
                "/run/nvidia/driver/dev/mem",
            )
        ),
        *(
            (node, False)
            for node in (
                "/dev/nvidia0",
                "/dev/hdmi",
                "/dev/vdec",
                "/dev/svm0",
                "/dev/loop7",
                "/dev/snd/pcmC0D0p",
                "/dev/memory_lane",
                "/dev/dri/card0",
            )
        ),
    ],
)
def test_a_pattern_allows_no_memory_and_no_disk_whatever_it_says(
    path: str, *, is_never: bool
) -> None:
    """As far as its examples go a pattern is rejected; what gets through is held here."""
    assert is_never_node(path) is is_never
    profile = Profile(name="all", resources=("example.com/all",))
    force_setattr(profile, "allow_nodes", (".*",))
    assert profile.allows_node(path) is not is_never


def test_a_rejected_file_is_logged_once_a_version(
    tmp_path: Path, profiles: Profiles, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "name: [", "bad.yaml")
    for _ in range(3):
        profiles.usual("nvidia.com/gpu")
    assert caplog.text.count("rejected profile") == 1
    assert "bad.yaml at=1 reason=" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "node"),
    [
        (".*", "/dev/mem"),
        ("/dev/.*", "/dev/mem"),
        ("/dev/(k?mem|gadget)", "/dev/mem"),
        ("/dev/kmsg", "/dev/kmsg"),
        ("/dev/p[a-z]+", "/dev/port"),
        ("/dev/sd[a-z]", "/dev/sda"),
        ("/dev/nvme.*", "/dev/nvme0"),
        ("/dev/dm-[0-9]+", "/dev/dm-0"),
        ("/dev/disk/.*", "/dev/disk/by-id/x"),
    ],
)
def test_a_pattern_that_allows_memory_logs_or_disks_is_rejected(
    tmp_path: Path, profiles: Profiles, pattern: str, node: str
) -> None:
    write(tmp_path, OWN.replace("/dev/gadget[0-9]+", pattern))
    assert profiles.usual("example.com/gadget").name == "generic"
    (fault,) = profiles.faults("example.com/gadget")
    assert str(fault) == (
        f"{tmp_path}/own.yaml:3: allowNodes.0: allows {node}, which is never granted: make it"
        " narrower"
    )


def test_a_pattern_that_is_none_is_rejected(tmp_path: Path, profiles: Profiles) -> None:
    write(tmp_path, OWN.replace("/dev/gadget[0-9]+", "/dev/gadget["))
    (fault,) = profiles.faults("example.com/gadget")
    assert fault.line == 3
    assert "is no regular expression" in fault.reason


def test_a_file_of_which_nobody_can_tell_what_it_serves_may_serve_anything(
    tmp_path: Path, profiles: Profiles
) -> None:
    write(tmp_path, "name: [", "a.yaml")
    write(tmp_path, "name: b\nresources: [example.com/gizmo]\nallow: 1\n", "b.yaml")
    assert [f.path.name for f in profiles.faults("example.com/gadget")] == ["a.yaml"]
    assert [f.path.name for f in profiles.faults("example.com/gizmo")] == ["a.yaml", "b.yaml"]


def test_two_files_of_one_name_are_one_too_many(tmp_path: Path, profiles: Profiles) -> None:
    write(tmp_path, OWN, "a.yaml")
    write(tmp_path, OWN, "b.yaml")
    (fault,) = profiles.faults("example.com/gadget")
    assert (fault.path.name, fault.reason) == ("b.yaml", "gadget is in a.yaml too")


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, profiles: Profiles) -> None:
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.yml")
    write(tmp_path, "x" * 100_000, "long.yaml")
    assert profiles.usual("example.com/gadget").name == "generic"
    reasons = {f.path.name: f.reason for f in profiles._loaded.faults}
    assert "cannot be read" in reasons["gone.yaml"]
    assert "cannot be read" in reasons["pipe.yml"]
    assert "is longer than" in reasons["long.yaml"]


@given(st.binary(max_size=300))
def test_no_bytes_of_a_file_raise_anything_but_that_it_is_none(raw: bytes) -> None:
    try:
        parse(raw)
    except DocumentError as error:
        assert error.line >= 1
