# SPDX-License-Identifier: Apache-2.0
"""Whose a cgroup is: the topmost pod with a container right below it, whatever is below that."""

import os
from pathlib import Path, PurePosixPath

import pytest

from devicemount_agent.container import cgroup
from devicemount_agent.container.cgroup import container_cgroup, identify, owner_of, pod_below
from devicemount_agent.errors import ContainerMismatch
from devicemount_agent.model import ContainerID, PodUID

UID = "6c8b5f3e-7d3a-4b8e-9a55-3f3f0d1c2b4a"
OTHER_UID = "11111111-2222-3333-4444-555555555555"
STATIC_UID = "0f7d1a2b3c4d5e6f708192a3b4c5d6e7"
ID = "ab" * 32
OTHER_ID = "cd" * 32
UNDERSCORED = UID.replace("-", "_")


@pytest.mark.parametrize(
    ("path", "pod_uid", "depth"),
    [
        pytest.param(f"kubepods/pod{UID}/{ID}", UID, 3, id="cgroupfs, guaranteed"),
        pytest.param(f"kubepods/burstable/pod{UID}/{ID}", UID, 4, id="cgroupfs, burstable"),
        pytest.param(f"dm-node1/kubepods/besteffort/pod{UID}/{ID}", UID, 5, id="below a root"),
        pytest.param(f"kubepods/burstable/pod{STATIC_UID}/{ID}", STATIC_UID, 4, id="static pod"),
        pytest.param(
            f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice"
            f"/cri-containerd-{ID}.scope",
            UID,
            4,
            id="systemd, containerd",
        ),
        pytest.param(
            f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice"
            f"/docker-{ID}.scope",
            UID,
            4,
            id="systemd, Docker",
        ),
        pytest.param(
            f"kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-{ID}.scope/container",
            UID,
            3,
            id="systemd, crun below the scope",
        ),
        pytest.param(
            f"kubepods/pod{UID}/{ID}/kubepods/pod{OTHER_UID}/{OTHER_ID}",
            UID,
            3,
            id="a container that names its own cgroups like another's",
        ),
    ],
)
def test_a_containers_cgroup_is_known(path: str, pod_uid: str, depth: int) -> None:
    owner = identify(PurePosixPath(path))
    assert owner is not None
    assert (owner.pod_uid, owner.container_id, owner.depth) == (pod_uid, ID, depth)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "system.slice/containerd.service",
        f"kubepods/pod{UID}",
        f"system.slice/docker-{ID}.scope",
        f"kubepods/pod{UID}/{ID[:-1]}",
        f"kubepods/pod{UID}/x{ID}",
        f"kubepods/notpod{UID}/{ID}",
        f"kubepods/pod{UID}/deeper/{ID}",
    ],
)
def test_everything_else_is_the_nodes(path: str) -> None:
    assert identify(PurePosixPath(path)) is None


@pytest.mark.parametrize(
    "path",
    [
        f"kubepods/burstable/pod{UID}",
        f"dm-node1/kubepods/pod{UID}",
        f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice",
        f"docker/{ID}/kubelet/kubepods/besteffort/pod{UID}",
    ],
)
def test_a_pods_cgroup_is_found_by_its_uid(tmp_path: Path, path: str) -> None:
    (tmp_path / "kubepods/burstable" / f"pod{OTHER_UID}" / ID).mkdir(parents=True)
    (tmp_path / path / ID).mkdir(parents=True)
    assert pod_below(tmp_path, PodUID(UID)) == tmp_path / path


def test_what_a_tenant_names_like_a_pod_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / f"kubepods/pod{OTHER_UID}/{ID}/pod{UID}/{OTHER_ID}").mkdir(parents=True)
    assert pod_below(tmp_path, PodUID(UID)) is None


@pytest.mark.parametrize(
    "names",
    [
        (f"kubepods/burstable/pod{UID}/{ID}",),
        (
            f"kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-{ID}.scope",
            f"kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-conmon-{ID}.scope",
        ),
        (),
    ],
    ids=["cgroupfs", "systemd, with its monitor beside it", "it is gone"],
)
def test_a_containers_cgroups_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    (tmp_path / f"kubepods/pod{OTHER_UID}/{OTHER_ID}/pod{UID}/{ID}").mkdir(parents=True)
    (tmp_path / f"kubepods/pod{OTHER_UID}/{ID}").mkdir(parents=True)
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    own = cgroup.Cgroup(cgroup.CgroupVersion.V2, tmp_path / "agent", tmp_path)
    monkeypatch.setattr(cgroup, "process_cgroup", lambda _: own)
    found = cgroup.cgroups_of(PodUID(UID), ContainerID(ID))
    assert {one.path for one in found} == {tmp_path / name for name in names}
    everyone = {one.path.relative_to(tmp_path).as_posix() for one in cgroup.every_container()}
    others = {f"kubepods/pod{OTHER_UID}/{one}" for one in (ID, OTHER_ID)}
    assert everyone == others | set(names)


def test_processes_are_found_however_deep_a_tenant_nests_its_cgroups(tmp_path: Path) -> None:
    levels = [tmp_path.joinpath(*["c"] * depth) for depth in range(1500)]
    for pid, level in enumerate(levels):
        level.mkdir(exist_ok=True)
        (level / "cgroup.procs").write_text(f"{pid}\n")
    try:
        assert [*cgroup.processes_in(tmp_path)] == [*range(1500)]
    finally:
        for level in reversed(levels):  # pytest would recurse
            (level / "cgroup.procs").unlink()
            level.rmdir()


def test_a_process_outside_of_all_pods_is_nobodys() -> None:
    assert owner_of(os.getpid()) == (None, None)
    with pytest.raises(ContainerMismatch, match=f"not in container {ID} of pod {UID}"):
        container_cgroup(os.getpid(), container_id=ContainerID(ID), pod_uid=PodUID(UID))


def test_a_process_outside_of_our_cgroup_namespace_is_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one of the machine in which the node is a container."""
    monkeypatch.setattr(cgroup, "lines_of", lambda _: ["5:devices:/../up", "0::/../up"])
    assert owner_of(os.getpid()) == (None, None)


def test_a_process_that_is_not_there_has_no_owner() -> None:
    last = int(Path("/proc/sys/kernel/pid_max").read_text())
    with pytest.raises(ProcessLookupError):
        owner_of(last + 1)
