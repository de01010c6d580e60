# SPDX-License-Identifier: Apache-2.0
"""The one record of a run: all that `down` must undo, written before it comes into being.

It is the only memory of the testbed; a testbed killed at any moment is cleaned up from it.
Names are written before the thing is made, processes before they run (see processes).
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from devicemount_testbed.processes import Process


@dataclass(frozen=True, slots=True)
class Record:
    """What one run of the testbed made or changed on this machine."""

    boot_id: str  # pids and start times of another boot mean nothing
    relay_port: int
    netns: tuple[str, ...]
    cgroups: tuple[str, ...]
    made_netns_dir: bool
    controllers: tuple[str, ...]  # what the unified root delegated before
    sysctls: dict[str, str]  # the kubelet sets some of the whole machine
    crun: str = ""  # its version, which decides what RuntimeClass crun does; "" in old records
    processes: tuple[Process, ...] = field(default=())

    @property
    def mounts(self) -> tuple[str, ...]:
        """The mounts outside the nodes: each network namespace is held by one."""
        return tuple(f"/run/netns/{name}" for name in self.netns)

    def process(self, component: str) -> Process | None:
        return next((p for p in self.processes if p.component == component), None)

    def with_process(self, process: Process) -> "Record":
        return replace(self, processes=(*self.processes, process))

    def without(self, process: Process) -> "Record":
        return replace(self, processes=tuple(p for p in self.processes if p != process))


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def to_json(record: Record) -> str:
    return json.dumps({**asdict(record), "mounts": record.mounts}, indent=2) + "\n"


def from_json(text: str) -> Record:
    raw = json.loads(text)
    return Record(
        boot_id=str(raw["boot_id"]),
        relay_port=int(raw["relay_port"]),
        netns=tuple(raw["netns"]),
        cgroups=tuple(raw["cgroups"]),
        made_netns_dir=bool(raw["made_netns_dir"]),
        controllers=tuple(raw["controllers"]),
        sysctls=dict(raw["sysctls"]),
        crun=str(raw.get("crun", "")),
        processes=tuple(
            Process(component=p["component"], pid=p["pid"], start_ticks=p["start_ticks"])
            for p in raw["processes"]
        ),
    )


def save(record: Record, path: Path) -> None:
    """Replace the record as a whole: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(to_json(record))
    draft.replace(path)


def load(path: Path) -> Record | None:
    """Read the record; processes of an earlier boot are left out."""
    try:
        record = from_json(path.read_text())
    except FileNotFoundError:
        return None
    return record if record.boot_id == boot_id() else replace(record, processes=())
