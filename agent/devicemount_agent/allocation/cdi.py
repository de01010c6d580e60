# SPDX-License-Identifier: Apache-2.0
"""Reader `cdi`: the CDI names in a device plugin's answer, by the spec files of the node.

As the runtime does it: static directory first, the dynamic one has priority; a name that is there
twice at one priority cannot be resolved; what the spec says of all devices comes once, then each
device's own. A file that is broken hides nothing but itself. Read anew each time (parsed once a
version), so a spec that comes late is found by the next try.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent.allocation.cdi_spec import (
    SPEC_LIMIT_BYTES,
    ContainerEdits,
    Device,
    Mount,
    Node,
    Spec,
    is_qualified,
    parse,
)
from devicemount_agent.allocation.grafted import (
    access_of,
    check_number,
    inside,
    mounted,
    named,
    node_of,
)
from devicemount_agent.allocation.hooks import Around, said_by
from devicemount_agent.allocation.host import Found, Host
from devicemount_agent.allocation.said import Answer, Said, Subject, besides, joined
from devicemount_agent.errors import AllocationUnknown, NotAllowed
from devicemount_agent.kernel.files import beginning_of, regular_file
from devicemount_agent.logs import line
from devicemount_agent.model import Access, DeviceNode, DeviceNumber, Edits, EnvVar
from devicemount_agent.profiles.profile import Profile

FILES_LIMIT = 1024  # a DRA driver writes one a claim
NAMES_LIMIT = 256  # in one answer
SUFFIXES = (".json", ".yaml")
ANNOTATION_PREFIX = "cdi.k8s.io/"
_DEFAULT_MODE = 0o666  # runc's for a node that neither spec nor host gives one
_BINDS = frozenset({"", "none", "bind", "rbind"})  # types of what is of the node's own files
_READ_ONLY = frozenset({"ro", "rro"})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placed:
    """A device and where it is defined."""

    path: Path
    spec: Spec
    device: Device


@dataclass(frozen=True, slots=True)
class Known:
    """What the spec files say."""

    devices: Mapping[str, list[tuple[int, Placed]]]  # by qualified name, with the priority
    ignored: tuple[str, ...]  # files that say nothing, each with the reason


class Cdi:
    """The node's spec directories, lowest priority first."""

    def __init__(self, host: Host, directories: Iterable[Path]) -> None:
        self._host = host
        self._directories = tuple(directories)
        self._parsed: dict[Path, tuple[tuple[int, int, int], Spec | str]] = {}

    async def read(self, subject: Subject) -> Said | None:
        names = names_in(subject.answer)
        if not names:
            return None
        return await asyncio.to_thread(self._resolved, subject, names)

    def _resolved(self, subject: Subject, names: tuple[str, ...]) -> Said:
        edits = tuple(self._edits(names))
        env = dict(subject.answer.envs)
        for name, edit in edits:
            env |= {variable.name: variable.value for variable in _variables(name, edit)}
        parts = (part for name, e in edits for part in self._applied(subject, name, e, env=env))
        return joined(subject.resource, *parts)

    def _edits(self, names: tuple[str, ...]) -> Iterator[tuple[str, ContainerEdits]]:
        """Yield what is to be applied, each with the name for which it is."""
        known = self._known()
        applied: set[Path] = set()
        for name in names:
            placed = self._one(name, known)
            if placed.path not in applied:
                applied.add(placed.path)
                yield name, placed.spec.container_edits
            yield name, placed.device.container_edits

    def _one(self, name: str, known: Known) -> Placed:
        found = known.devices.get(name, [])
        if not found:
            directories = ", ".join(map(str, self._directories))
            ignored = besides("ignored", known.ignored)
            raise AllocationUnknown(f"no CDI spec in {directories} has {name} (yet){ignored}")
        priorities = [priority for priority, _ in found]
        if len(set(priorities)) < len(priorities):
            files = ", ".join(str(placed.path) for _, placed in found)
            raise AllocationUnknown(f"CDI specs conflict about {name}: {files}")
        return max(found, key=lambda entry: entry[0])[1]

    # ---- spec files

    def _known(self) -> Known:
        devices: dict[str, list[tuple[int, Placed]]] = {}
        ignored: list[str] = []
        seen: set[Path] = set()
        for priority, directory in enumerate(self._directories):
            for path in _files(directory):
                seen.add(path)
                spec = self._spec(path)
                if isinstance(spec, str):
                    ignored.append(f"{path}: {spec}")
                    continue
                for device in spec.devices:
                    places = devices.setdefault(f"{spec.kind}={device.name}", [])
                    places.append((priority, Placed(path, spec, device)))
        self._parsed = {path: kept for path, kept in self._parsed.items() if path in seen}
        return Known(devices, tuple(ignored))

    def _spec(self, path: Path) -> Spec | str:
        """Return a file's spec, or why it is none: logged once a version."""
        try:
            with regular_file(path) as fd:
                facts = os.fstat(fd)
                version = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
                kept = self._parsed.get(path)
                if kept is not None and kept[0] == version:
                    return kept[1]
                raw = beginning_of(fd, limit_bytes=SPEC_LIMIT_BYTES + 1)
        except OSError as error:
            log.warning(line("could not read CDI spec", file=path, error=error))
            return f"cannot be read: {error.strerror}"
        spec: Spec | str
        try:
            spec = parse(raw, is_json=path.suffix == ".json")
        except ValueError as error:
            log.warning(line("ignored CDI spec", file=path, error=error))
            spec = str(error)
        self._parsed[path] = (version, spec)
        return spec

    # ---- edits

    def _applied(
        self, subject: Subject, name: str, edits: ContainerEdits, *, env: Mapping[str, str]
    ) -> Iterator[Said]:
        """Yield what enters the container. Raises AllocationUnknown, NotAllowed."""
        if edits.net_devices or edits.intel_rdt is not None:
            what = "netDevices" if edits.net_devices else "intelRdt"
            raise AllocationUnknown(f"{name}: its CDI {what} cannot enter a running container")
        if edits.additional_gids:
            log.info(line("left out groups", cdi=name, gids=list(edits.additional_gids)))
        try:
            files = [self._mounted(subject.profile, mount) for mount in edits.mounts]
            nodes = Said(tuple(self._node(subject.profile, node) for node in edits.device_nodes))
        except (AllocationUnknown, NotAllowed) as error:
            raise type(error)(f"{name}: {error}") from error
        yield nodes
        yield from files
        yield Said(edits=Edits(env=_variables(name, edits)))
        mounts = [mount for part in files for mount in part.edits.mounts]
        around = Around(name, self._host, mounts=mounts, env=env)
        for hook in edits.hooks:
            yield said_by(hook, around)

    def _mounted(self, profile: Profile, mount: Mount) -> Said:
        """Return a mount; what its options loosen, and how it propagates, is not for us."""
        if mount.type not in _BINDS:
            raise AllocationUnknown(
                f"its CDI mount {mount.container_path} is of type {mount.type[:80]!r}: only files"
                " of the node can be mounted into a running container"
            )
        return mounted(
            self._host,
            profile,
            mount.host_path,
            path=mount.container_path,
            read_only=bool(_READ_ONLY.intersection(mount.options)),
            no_exec="noexec" in mount.options,
        )

    def _node(self, profile: Profile, spec: Node) -> DeviceNode:
        """Return a node as the CDI library fills in what is missing."""
        path, host_path = inside(spec.path), spec.host_path or spec.path
        access = Access.NONE if spec.permissions == "none" else access_of(spec.permissions or "rw")
        found = self._found(host_path, is_needed=not (spec.type and spec.major))
        if found is None:
            number, place = DeviceNumber(_kind(spec.type), spec.major, spec.minor), host_path
            if not profile.allows_node(place):
                raise NotAllowed(f"{place} is outside of what profile {profile.name} allows")
            check_number(number, place)
        else:
            node = node_of(profile, found, path=path, access=access)
            number, place = node.number, node.host_path
            if spec.major and (spec.major, spec.minor) != (number.major, number.minor):
                raise AllocationUnknown(
                    f"{path} is {spec.major}:{spec.minor} in the CDI spec and {number.major}:"
                    f"{number.minor} on the node: the spec is out of date"
                )
            if spec.type and _kind(spec.type) != number.kind:
                raise AllocationUnknown(f"{path} is of type {spec.type} in the CDI spec only")
        mode = spec.file_mode if spec.file_mode is not None or found else _DEFAULT_MODE
        return DeviceNode(
            path=path,
            host_path=place,
            number=number,
            access=access,
            mode=None if mode is None else mode & 0o666,
            uid=spec.uid,
            gid=spec.gid,
        )

    def _found(self, host_path: str, *, is_needed: bool) -> Found | None:
        if not is_needed and not self._host.exists(host_path):
            return None
        with named():
            return self._host.find(host_path)


def names_in(answer: Answer) -> tuple[str, ...]:
    """Return the CDI names of an answer: its field's, then its annotations', each once.

    An annotation's prefix can be configured, so what counts is that all its parts are CDI names.
    """
    names = [device.name for device in answer.cdi_devices]
    for key in sorted(answer.annotations):
        parts = answer.annotations[key].split(",")
        if key.startswith(ANNOTATION_PREFIX) or all(is_qualified(part) for part in parts):
            names += parts
    names = list(dict.fromkeys(names))
    if len(names) > NAMES_LIMIT:
        raise AllocationUnknown(f"the device plugin answered more than {NAMES_LIMIT} CDI names")
    for name in names:
        if not is_qualified(name):
            raise AllocationUnknown(f"{name[:200]!r} is no CDI name")
    return tuple(names)


def _files(directory: Path) -> list[Path]:
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if not entry.is_dir())
    except FileNotFoundError:
        return []
    return [directory / name for name in names if name.endswith(SUFFIXES)][:FILES_LIMIT]


def _kind(spec_type: str) -> str:
    if spec_type not in {"c", "u", "b"}:
        raise AllocationUnknown(f"a CDI node of type {spec_type!r} is no device")
    return "b" if spec_type == "b" else "c"


def _variables(name: str, edits: ContainerEdits) -> tuple[EnvVar, ...]:
    return tuple(_variable(name, text) for text in edits.env)


def _variable(name: str, text: str) -> EnvVar:
    variable, separator, value = text.partition("=")
    if not separator or not variable or "\0" in text:
        raise AllocationUnknown(f"{name}: {text[:80]!r} is no variable")
    return EnvVar(variable, value)
