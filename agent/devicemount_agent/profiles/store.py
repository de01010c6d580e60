# SPDX-License-Identifier: Apache-2.0
"""All profiles of the node: ours, and an administrator's over them.

An administrator's file with the name of one of ours changes only the fields that it has. A bad file
is rejected with file, line and reason, and everything else goes on as if it were not there; the
directory (a ConfigMap's) is looked at again whenever a profile is asked for.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from devicemount_agent.kernel.files import beginning_of, regular_file
from devicemount_agent.logs import line
from devicemount_agent.profiles.document import DOCUMENT_LIMIT_BYTES, Document, DocumentError, parse
from devicemount_agent.profiles.profile import Misfit, Profile

SHIPPED = Path(__file__).parent
SUFFIXES = (".yaml", ".yml")
FILES_LIMIT = 256
GENERIC = "generic"  # of what has no other profile, also where an administrator narrows it

_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")  # of "$.source[1]"
_FIELD = re.compile(
    r"Object (?P<how>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL
)

log = logging.getLogger(__name__)

_Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """A file that was rejected."""

    path: Path
    line: int
    reason: str
    resources: tuple[str, ...] = ()  # that it would have served; none: nobody can tell

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a directory holds."""

    profiles: tuple[Profile, ...]
    faults: tuple[Fault, ...]


class Profiles:
    """Finds the profile of a resource."""

    def __init__(self, directory: Path, *, shipped: Path = SHIPPED) -> None:
        """Load ours. Raises ValueError if one of them is bad: that is a mistake of ours."""
        self._directory = directory
        self._shipped = {document.content["name"]: document.content for document in _ours(shipped)}
        self._generic = msgspec.convert(self._shipped[GENERIC], Profile)
        self._signature: _Signature | None = None
        self._loaded = Loaded((), ())

    def of(self, resource: str, env: Mapping[str, str], mounts: tuple[str, ...]) -> Profile:
        """Return the profile of an answer: of those that it meets, one with a condition first,
        then the one that names the resource most closely, then an administrator's."""
        met = [
            p for p in self._now().profiles if p.closeness(resource) >= 0 and p.meets(env, mounts)
        ]
        return max(
            met,
            key=lambda p: (p.when is not None, p.closeness(resource)),
            default=self._generic,
        )

    def usual(self, resource: str) -> Profile:
        """Return the profile of a resource as long as nothing was answered."""
        usual = [p for p in self._now().profiles if p.when is None and p.closeness(resource) >= 0]
        return max(usual, key=lambda p: p.closeness(resource), default=self._generic)

    def faults(self, resource: str) -> tuple[Fault, ...]:
        """Return the rejected files that would have served a resource, or may have."""
        return tuple(
            fault
            for fault in self._now().faults
            if not fault.resources or any(fnmatchcase(resource, glob) for glob in fault.resources)
        )

    def _now(self) -> Loaded:
        signature = _signature(self._directory)
        if signature != self._signature:
            self._loaded = load(
                self._shipped, self._directory, tuple(entry[0] for entry in signature)
            )
            self._signature = signature
            for fault in self._loaded.faults:
                log.error(
                    line("rejected profile", file=fault.path, at=fault.line, reason=fault.reason)
                )
        return self._loaded


def load(shipped: Mapping[str, dict[str, Any]], directory: Path, names: tuple[str, ...]) -> Loaded:
    """Lay the files of a directory over the shipped profiles; theirs come first."""
    profiles: dict[str, Profile] = {}
    from_files: dict[str, Path] = {}
    faults: list[Fault] = []
    for path in (directory / name for name in names):
        content: dict[str, Any] = {}
        try:
            document = parse(_bounded(path))
            name = str(document.content.get("name"))
            content = {**shipped.get(name, {}), **document.content}
            profile = _validated(content, document)
            if name in from_files:
                raise DocumentError(
                    f"{name} is in {from_files[name].name} too", document.line_of(["name"])
                )
        except DocumentError as error:
            faults.append(Fault(path, error.line, str(error), _resources(content)))
        except OSError as error:
            faults.append(Fault(path, 1, f"cannot be read: {error.strerror}"))
        else:
            from_files[name] = path
            profiles[name] = profile
    for name in shipped.keys() - profiles.keys():
        profiles[name] = msgspec.convert(shipped[name], Profile)
    return Loaded(tuple(profiles.values()), tuple(faults))


def _ours(directory: Path) -> list[Document]:
    documents = []
    for path in sorted(directory.glob("*.yaml")):
        try:
            document = parse(path.read_bytes())
            _validated(document.content, document)
        except DocumentError as error:
            raise ValueError(f"{path}:{error.line}: {error}") from error
        documents.append(document)
    return documents


def _validated(content: Mapping[str, Any], document: Document) -> Profile:
    try:
        return msgspec.convert(content, Profile)
    except msgspec.ValidationError as error:
        place, reason = _explained(error)
        where = ".".join(str(step) for step in place)
        told = f"{where}: {reason}" if where else reason
        raise DocumentError(told, document.line_of(place)) from error


def _explained(error: msgspec.ValidationError) -> tuple[tuple[int | str, ...], str]:
    """Return where in a document the mistake is, and what it is: msgspec says both in one text."""
    said, at, path = str(error).rpartition(" - at `$")  # the last: a value may say so too
    reason = said if at else path
    steps = _STEP.findall(path) if at else ()
    place = tuple(name or int(position) for name, position in steps)
    if isinstance(error.__cause__, Misfit):
        return (*place, *error.__cause__.place), str(error.__cause__)
    if found := _FIELD.fullmatch(reason):
        is_unknown = found["how"] == "contains unknown"
        advice = "is not known: remove it or correct its spelling" if is_unknown else "is required"
        return (*place, found["name"]), advice
    return place, reason


def _resources(content: Mapping[str, Any]) -> tuple[str, ...]:
    resources = content.get("resources")
    if not isinstance(resources, list):
        return ()
    return tuple(glob for glob in resources if isinstance(glob, str))


def _bounded(path: Path) -> bytes:
    """Read a file's beginning, a byte more than is taken. Raises OSError."""
    with regular_file(path) as fd:
        return beginning_of(fd, limit_bytes=DOCUMENT_LIMIT_BYTES + 1)


def _signature(directory: Path) -> _Signature:
    """Return the directory's files and what changes with them.

    A ConfigMap's names are links to links: the kubelet changes the inner one, so the inode differs.
    """
    entries = []
    try:
        names = sorted(path.name for path in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return ()
    for name in names:
        if name.startswith(".") or not name.endswith(SUFFIXES):
            continue
        try:
            facts = (directory / name).stat()
        except OSError:
            entries.append((name, 0, 0, 0))
            continue
        entries.append((name, facts.st_ino, facts.st_size, facts.st_mtime_ns))
    return tuple(entries[:FILES_LIMIT])
