# SPDX-License-Identifier: Apache-2.0
"""Where a container stands in the hierarchy that controls devices, and whose a process is.

Reads /proc/<pid>/cgroup; the agent is in the node's own cgroup namespace, so what stands there is a
path below the mount. A container may own the cgroups below its own and name them as it likes: the
topmost match counts, nothing below it.
"""

import errno
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from pathlib import Path, PurePath, PurePosixPath

from devicemount_agent.errors import ContainerMismatch
from devicemount_agent.kernel.files import CGROUP2_SUPER_MAGIC, lines_of, statfs_type
from devicemount_agent.model import ContainerID, PodUID

CGROUP_ROOT = Path("/sys/fs/cgroup")
POD_DEPTH_LIMIT = 8  # the kubelet's own root, QoS class and slices above a pod

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


def freezer_cgroup(pid: int, *, pod_uid: PodUID, root: Path = CGROUP_ROOT) -> Cgroup | None:
    """Return the cgroup of a process's pod in the hierarchy that freezes; None: it has none there.

    Raises ProcessLookupError.
    """
    own = _cgroup_of(pid, controller="freezer", root=root)
    below = own.path.relative_to(own.hierarchy)
    owner = identify(below)
    if owner is None or owner.pod_uid != pod_uid:
        return None
    return replace(own, path=own.hierarchy.joinpath(*below.parts[: owner.depth - 1]))


def owner_of(
    pid: int, *, root: Path = CGROUP_ROOT
) -> tuple[PodUID, ContainerID] | tuple[None, None]:
    """Return pod and container of a process, (None, None) for a process of the node.

    Raises ProcessLookupError.
    """
    try:
        own = process_cgroup(pid, root=root)
    except ContainerMismatch:  # above the node, where that is a container itself
        return None, None
    owner = identify(own.path.relative_to(own.hierarchy))
    return (None, None) if owner is None else (owner.pod_uid, owner.container_id)


def processes_in(cgroup: Path) -> Iterator[int]:
    """Yield the processes that are in a cgroup, or below it, at the moment.

    However deep a tenant nests its own: os.walk recurses.
    """
    waiting = deque([cgroup])
    while waiting:
        directory = waiting.popleft()
        with _unless(errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.ENAMETOOLONG):
            # It has gone, or holds threads only: those of a process above it.
            yield from map(int, (directory / "cgroup.procs").read_text().split())
        with _unless(errno.ENODEV, errno.ENAMETOOLONG):  # no path leads any deeper
            waiting += _directories(directory)


@contextmanager
def _unless(*expected: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in expected:
            raise


def process_cgroup(pid: int, *, root: Path = CGROUP_ROOT) -> Cgroup:
    """Return the cgroup that a process is in. Raises ProcessLookupError."""
    return _cgroup_of(pid, controller="devices", root=root)


def _cgroup_of(pid: int, *, controller: str, root: Path) -> Cgroup:
    """Return where a process is for a controller: on v1, or on v2, which has them all."""
    try:
        lines = lines_of(f"/proc/{pid}/cgroup")
    except FileNotFoundError as error:
        raise ProcessLookupError(error.errno, "no such process", error.filename) from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ContainerMismatch(f"the path of process {pid}'s cgroup is too long") from error
    paths = dict(_controllers_and_path(line, controller) for line in lines)
    if statfs_type(str(root)) == CGROUP2_SUPER_MAGIC:
        return _cgroup(CgroupVersion.V2, root, paths[""])
    if controller in paths:
        return _cgroup(CgroupVersion.V1, root / controller, paths[controller])
    return _cgroup(CgroupVersion.V2, root / "unified", paths[""])


def pod_cgroup(pod_uid: PodUID, *, root: Path = CGROUP_ROOT) -> Path | None:
    """Return the directory of a pod's containers in the hierarchy that controls devices."""
    return pod_below(process_cgroup(os.getpid(), root=root).hierarchy, pod_uid)


def pod_below(hierarchy: Path, pod_uid: PodUID) -> Path | None:
    """Find it by its name."""
    return next((path for path in _pods_below(hierarchy) if _pod_uid(path) == pod_uid), None)


def _pods_below(hierarchy: Path) -> Iterator[Path]:
    """Yield what is named like a pod; nothing inside of it, where names are tenants'."""
    level = [hierarchy]
    for _ in range(POD_DEPTH_LIMIT):
        below: list[Path] = []
        for directory in level:
            for path in _directories(directory):
                if _pod_uid(path) is None:
                    below.append(path)
                else:
                    yield path
        level = below


def _pod_uid(path: Path) -> str | None:
    pod = _POD.fullmatch(path.name)
    return pod["uid"].replace("_", "-") if pod else None


def cgroups_of(pod_uid: PodUID, container_id: ContainerID) -> tuple[Cgroup, ...]:
    """Find a container's cgroups by name, whatever the runtime says of it; none once it is gone."""
    own = process_cgroup(os.getpid())
    pod = pod_below(own.hierarchy, pod_uid)
    return tuple(
        replace(own, path=path)
        for path in (_directories(pod) if pod else ())
        if (named := _CONTAINER.fullmatch(path.name)) and named["id"] == container_id
    )


def every_container() -> Iterator[Cgroup]:
    """Yield the cgroups of all containers of the node, by name."""
    own = process_cgroup(os.getpid())
    for pod in _pods_below(own.hierarchy):
        for path in _directories(pod):
            if _CONTAINER.fullmatch(path.name):
                yield replace(own, path=path)


def _directories(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []  # it has just gone


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


def _controllers_and_path(line: str, controller: str) -> tuple[str, str]:
    """Split one line: "5:devices:/kubepods/..."; the path may hold colons."""
    _, controllers, path = line.split(":", 2)
    return (controller if controller in controllers.split(",") else controllers), path


def _cgroup(version: CgroupVersion, hierarchy: Path, path: str) -> Cgroup:
    parts = PurePosixPath(path).parts[1:]
    if ".." in parts:
        raise ContainerMismatch(f"cgroup {path} is outside of the agent's cgroup namespace")
    return Cgroup(version=version, path=hierarchy.joinpath(*parts), hierarchy=hierarchy)
