# SPDX-License-Identifier: Apache-2.0
"""The first process of a container whose runtime does not name it (cri-dockerd's CRI answers have
no pid).

It is the oldest process in the container's cgroup: the runtime puts it there before anything else
can be, and the container ends with it. find.py proves it like one that the runtime named.
"""

from pathlib import Path

from devicemount_agent.container.cgroup import CGROUP_ROOT, owner_of
from devicemount_agent.model import ContainerID, PodUID

_START_TIME = 19  # of the fields after the command: field 22 of proc_pid_stat(5)


def first_process(container_id: ContainerID, pod_uid: PodUID, *, root: Path = CGROUP_ROOT) -> int:
    """Return its pid, 0 when no process is in that container."""
    pids = [
        (start, pid)
        for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*"))
        if (start := _start_time_in(pid, container_id, pod_uid, root)) is not None
    ]
    return min(pids, default=(0, 0))[1]


def _start_time_in(pid: int, container_id: ContainerID, pod_uid: PodUID, root: Path) -> int | None:
    """Return when a process of the container started, in clock ticks after the boot."""
    try:
        if owner_of(pid, root=root) != (pod_uid, container_id):
            return None
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None  # it has ended
    return int(status.rpartition(b")")[2].split()[_START_TIME])
