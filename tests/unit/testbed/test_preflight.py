# SPDX-License-Identifier: Apache-2.0
"""What preflight says of machines that cannot run the testbed."""

import dataclasses
from pathlib import Path

import pytest

from devicemount_testbed.preflight import Facts, cgroup2_root, find_problems, v1_hierarchies

V1_LINES = "\n".join(
    f"cgroup /sys/fs/cgroup/{name} cgroup rw,nosuid,relatime,{name} 0 0"
    for name in ("cpu", "cpuacct", "cpuset", "devices", "memory", "pids", "name=systemd")
)
V2_LINE = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0"
FIT = Facts(
    uid=0,
    system="Linux",
    machine="x86_64",
    mounts=f"proc /proc proc rw 0 0\n{V1_LINES}\n{V2_LINE}\n",
    go_version="go1.26.1",
    cache=Path("/root/.cache/devicemount"),
    missing_packages=("nftables",),
    has_apt=True,
)


def test_a_fit_machine_has_no_problems() -> None:
    assert find_problems(FIT) == ()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param({"uid": 1000}, "must run as root", id="not root"),
        pytest.param({"machine": "aarch64"}, "this is Linux on aarch64", id="wrong architecture"),
        pytest.param({"system": "Darwin"}, "this is Darwin on x86_64", id="wrong system"),
        pytest.param({"mounts": V1_LINES}, "no cgroup v2 hierarchy", id="no cgroup v2"),
        pytest.param(
            {"mounts": f"{V2_LINE}\ncgroup /x cgroup rw,cpu,cpuacct,cpuset,memory,pids 0 0"},
            "no cgroup v1 hierarchy for devices",
            id="no v1 devices hierarchy",
        ),
        pytest.param({"go_version": None}, "Go is not installed", id="no Go"),
        pytest.param({"go_version": "go1.19.8"}, "this is go1.19.8", id="old Go"),
        pytest.param({"cache": Path("/var/cache/dm")}, "/var/cache/dm", id="cache hidden in nodes"),
        pytest.param({"has_apt": False}, "no apt-get to install nftables", id="no apt-get"),
    ],
)
def test_each_lack_is_named(change: dict[str, object], problem: str) -> None:
    (found,) = find_problems(dataclasses.replace(FIT, **change))  # type: ignore[arg-type]
    assert problem in found


def test_every_problem_is_told_at_once() -> None:
    unfit = dataclasses.replace(FIT, uid=1, go_version=None, mounts="")
    assert len(find_problems(unfit)) == 4


def test_hierarchies_are_found_by_controller() -> None:
    joint = (
        "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,nodev,noexec,relatime,cpu,cpuacct 0 0"
    )
    assert v1_hierarchies(joint) == {
        "cpu": Path("/sys/fs/cgroup/cpu,cpuacct"),
        "cpuacct": Path("/sys/fs/cgroup/cpu,cpuacct"),
    }
    assert cgroup2_root(FIT.mounts) == Path("/sys/fs/cgroup/unified")
