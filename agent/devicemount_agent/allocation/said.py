# SPDX-License-Identifier: Apache-2.0
"""What readers speak: a subject (one resource of one shadow pod) and what a source says of it.

A reader is one source. It says what it knows, or None when the source says nothing of this
allocation; what it cannot understand is an AllocationUnknown with the reason, never an empty
success. read.py asks the readers in the order of the profile and joins what they say.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from google.protobuf.message import DecodeError

from devicemount_agent.allocation.kubelet import Entry
from devicemount_agent.errors import AllocationUnknown
from devicemount_agent.logs import plain
from devicemount_agent.model import (
    Access,
    BindMount,
    DeviceID,
    DeviceNode,
    Edits,
    EnvVar,
    PodUID,
    ResourceName,
)
from devicemount_agent.profiles.profile import Profile
from devicemount_agent.requests import ShadowPod
from devicemount_node_api import deviceplugin_pb2

NODES_LIMIT = 1024  # of one resource: what a directory of nodes may hold
EDITS_LIMIT = 1024  # mounts and links of one resource: NVIDIA's driver has some 100
NAMED = 8  # paths in one message
FAULTS_NAMED = 3  # of files
FAULT_LIMIT = 256
LIBRARY_PATH = "LD_LIBRARY_PATH"
NO_EDITS = Edits()

_Thing = TypeVar("_Thing")

Answer = deviceplugin_pb2.ContainerAllocateResponse


@dataclass(frozen=True, slots=True)
class Ask:
    """For whom an allocation is read."""

    shadow: ShadowPod
    namespace: str
    accept_env_file: bool


@dataclass(frozen=True, slots=True)
class Subject:
    """One resource of a shadow pod, as the kubelet has it, and the profile that serves it."""

    resource: ResourceName
    ids: frozenset[DeviceID]
    answer: Answer  # the device plugin's
    profile: Profile
    shadow_uid: PodUID
    beside: int = 0  # devices of the pod's other resources that the same resolver names


@dataclass(frozen=True, slots=True)
class Said:
    """What one source says of an allocation, or several together."""

    nodes: tuple[DeviceNode, ...] = ()
    edits: Edits = NO_EDITS

    def gives_device(self) -> bool:
        """Tell whether anything may be opened: a node that is there without a right is none."""
        return any(node.access is not Access.NONE for node in self.nodes)


class Reader(Protocol):
    """One source."""

    async def read(self, subject: Subject) -> Said | None:
        """Return what it says, None for nothing.

        Raises AllocationUnknown, NotAllowed, NodeUnavailable.
        """
        ...


def answer_of(entry: Entry) -> Answer:
    """Return the device plugin's answer. Raises AllocationUnknown if the bytes are none."""
    try:
        return Answer.FromString(entry.answer)
    except DecodeError as error:
        raise AllocationUnknown(
            f"{entry.resource}: the device plugin's answer is garbled"
        ) from error


def joined(resource: ResourceName, *parts: Said) -> Said:
    """Return all of it, each thing once.

    A later variable replaces an earlier one of its name, as in a container; library directories add
    up. Raises AllocationUnknown for two things at one path.
    """
    nodes = _one_a_path(resource, (node for part in parts for node in part.nodes))
    edits = [part.edits for part in parts]
    said = Said(
        nodes,
        Edits(
            mounts=_one_a_source(mount for e in edits for mount in e.mounts),
            links=_once(link for e in edits for link in e.links),
            overlaid=_once(text for e in edits for text in e.overlaid),
            env=_variables(variable for e in edits for variable in e.env),
        ),
    )
    _check(resource, said)
    return said


def _check(resource: ResourceName, said: Said) -> None:
    """Raise AllocationUnknown for two things at one path, or for too many."""
    if len(said.nodes) > NODES_LIMIT:
        raise AllocationUnknown(f"{resource}: more than {NODES_LIMIT} device nodes")
    if len(said.edits.paths()) > EDITS_LIMIT:
        raise AllocationUnknown(f"{resource}: more than {EDITS_LIMIT} mounts and links")
    count = Counter((*(node.path for node in said.nodes), *said.edits.paths()))
    twice = sorted(path for path, number in count.items() if number > 1)
    if twice:
        raise AllocationUnknown(f"{resource}: two things at {', '.join(twice[:NAMED])}")


def besides(what: str, faults: Sequence[str]) -> str:
    """Return the end of a message that names files which say nothing by their fault."""
    named = [plain(fault, limit=FAULT_LIMIT) for fault in faults[:FAULTS_NAMED]]
    if len(faults) > FAULTS_NAMED:
        named.append(f"{len(faults) - FAULTS_NAMED} more")
    return "".join(f"; {what} {fault}" for fault in named)


def without(said: Said, *, env: Iterable[str]) -> Said:
    """Return it without the variables that these globs name."""
    globs = tuple(env)
    kept = tuple(v for v in said.edits.env if not any(fnmatchcase(v.name, g) for g in globs))
    return replace(said, edits=replace(said.edits, env=kept))


def _one_a_path(resource: ResourceName, nodes: Iterable[DeviceNode]) -> tuple[DeviceNode, ...]:
    """Join what may be done with a node that is named twice."""
    by_path: dict[str, DeviceNode] = {}
    for node in nodes:
        known = by_path.setdefault(node.path, node)
        if known.number != node.number:
            raise AllocationUnknown(f"{resource}: two devices at {node.path}")
        if node.access not in known.access:
            by_path[node.path] = replace(known, access=known.access | node.access)
    return tuple(by_path.values())


def _one_a_source(mounts: Iterable[BindMount]) -> tuple[BindMount, ...]:
    """Join what is mounted at one place twice: what one source takes away, stays away."""
    known: dict[tuple[str, str], BindMount] = {}
    for mount in mounts:
        first = known.setdefault((mount.path, mount.host_path), mount)
        known[mount.path, mount.host_path] = replace(
            first,
            read_only=first.read_only or mount.read_only,
            no_exec=first.no_exec or mount.no_exec,
        )
    return tuple(known.values())


def _once(things: "Iterable[_Thing]") -> "tuple[_Thing, ...]":
    return tuple(dict.fromkeys(things))


def _variables(variables: Iterable[EnvVar]) -> tuple[EnvVar, ...]:
    values: dict[str, str] = {}
    for variable in variables:
        if variable.name == LIBRARY_PATH and variable.name in values:
            directories = (*values[LIBRARY_PATH].split(":"), *variable.value.split(":"))
            values[LIBRARY_PATH] = ":".join(dict.fromkeys(directories))
        else:
            values[variable.name] = variable.value
    return tuple(EnvVar(name, value) for name, value in values.items())
