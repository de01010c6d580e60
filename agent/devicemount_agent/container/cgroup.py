# SPDX-License-Identifier: Apache-2.0
"""Where a container stands in the hierarchy that controls devices, and whose a process is.

Reads /proc/<pid>/cgroup; the agent is in the node's own cgroup namespace, so what stands there is a
path below the mount. A container may own the cgroups below its own and name them as it likes: the
topmost match counts, nothing below it.
"""

import re
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path, PurePath, PurePosixPath

from devicemount_agent.errors import ContainerMismatch
from devicemount_agent.kernel.files import CGROUP2_SUPER_MAGIC, lines_of, statfs_type
from devicemount_agent.model import ContainerID, PodUID

CGROUP_ROOT = Path("/sys/fs/cgroup")

# cgroupfs: kubepods/burstable/pod<uid>/<id>
# systemd: kubepods-burstable-pod<uid with _>.slice/<runtime>-<id>.scope
_POD = re.compile(r"(?:[a-z0-9]+(?:-[a-z0-9]+)*-)?pod(?P<uid>[0-9a-zA-Z_-]{1,63}?)(?:\.slice)?")
_CONTAINER = re.compile(r"(?:[a-z]+(?:-[a-z]+)*-)?(?P<id>[0-9a-f]{64})(?:\.scope)?")


class CgroupVersion(Enum):
    V1 = "v1"
    V2 = "v2"


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One cgroup of the hierarchy that controls devices."""

    version: CgroupVersion
    path: Path
    hierarchy: Path  # where that hierarchy is mounted; `path` is it or below it


def container_cgroup(
    pid: int, *, container_id: ContainerID, pod_uid: PodUID, root: Path = CGROUP_ROOT
) -> Cgroup:
    """Return the cgroup of the container itself, in which the process `pid` is, or above it.

    Raises ContainerMismatch when the process is not in that container of that pod,
    ProcessLookupError when there is none.
    """
    own = process_cgroup(pid, root=root)
    below = own.path.relative_to(own.hierarchy)
    owner = identify(below)
    if owner is None or (owner.pod_uid, owner.container_id) != (pod_uid, container_id):
        raise ContainerMismatch(
            f"process {pid} is in cgroup /{below}, not in container {container_id} of pod {pod_uid}"
        )
    path = own.hierarchy.joinpath(*below.parts[: owner.depth])
    return Cgroup(version=own.version, path=path, hierarchy=own.hierarchy)


def owner_of(
    pid: int, *, root: Path = CGROUP_ROOT
) -> tuple[PodUID, ContainerID] | tuple[None, None]:
    """Return pod and container of a process, (None, None) for a process of the node.

    Raises ProcessLookupError.
    """
    own = process_cgroup(pid, root=root)
    owner = identify(own.path.relative_to(own.hierarchy))
    return (None, None) if owner is None else (owner.pod_uid, owner.container_id)


def process_cgroup(pid: int, *, root: Path = CGROUP_ROOT) -> Cgroup:
    """Return the cgroup that a process is in. Raises ProcessLookupError."""
    try:
        lines = lines_of(f"/proc/{pid}/cgroup")
    except FileNotFoundError as error:
        raise ProcessLookupError(error.errno, "no such process", error.filename) from error
    paths = dict(_controllers_and_path(line) for line in lines)
    if statfs_type(str(root)) == CGROUP2_SUPER_MAGIC:
        return _cgroup(CgroupVersion.V2, root, paths[""])
    if "devices" in paths:
        return _cgroup(CgroupVersion.V1, root / "devices", paths["devices"])
    return _cgroup(CgroupVersion.V2, root / "unified", paths[""])


@dataclass(frozen=True, slots=True)
class Owner:
    """The container that a cgroup belongs to."""

    pod_uid: PodUID
    container_id: ContainerID
    depth: int  # components down to the container's own cgroup


def identify(below: PurePath) -> Owner | None:
    """Find the topmost pod with a container right below it."""
    for depth, (above, name) in enumerate(pairwise(below.parts), start=2):
        pod = _POD.fullmatch(above)
        container = _CONTAINER.fullmatch(name)
        if pod and container:
            uid = pod["uid"].replace("_", "-")
            return Owner(PodUID(uid), ContainerID(container["id"]), depth)
    return None


def _controllers_and_path(line: str) -> tuple[str, str]:
    """Split one line: "5:devices:/kubepods/..."; the path may hold colons."""
    _, controllers, path = line.split(":", 2)
    return ("devices" if "devices" in controllers.split(",") else controllers), path


def _cgroup(version: CgroupVersion, hierarchy: Path, path: str) -> Cgroup:
    parts = PurePosixPath(path).parts[1:]
    if ".." in parts:
        raise ContainerMismatch(f"cgroup {path} is outside of the agent's cgroup namespace")
    return Cgroup(version=version, path=hierarchy.joinpath(*parts), hierarchy=hierarchy)
