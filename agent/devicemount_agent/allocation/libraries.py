# SPDX-License-Identifier: Apache-2.0
"""What a target lacks to use its devices: the driver's libraries, or those of the right version.

Looked for by name, inside the target's root, in the directories that the loader knows, that the
profile names and that the target's own LD_LIBRARY_PATH names. Nothing of the target is executed and
no file of it is read but its first process's environment: a target can fool only itself. Both can
lie on a file server of the target's own, which never answers: hence a deadline.
"""

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from devicemount_agent.allocation.grafted import named
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.said import LIBRARY_PATH
from devicemount_agent.errors import AllocationUnknown
from devicemount_agent.kernel.files import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    closing,
    openat2,
)
from devicemount_agent.model import Concern, Device, Edits
from devicemount_agent.profiles.profile import DriverLibraries, Profile, VersionCheck
from devicemount_agent.profiles.store import Profiles
from devicemount_agent.questions import Questions

USUAL = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
)
DIRECTORIES_LIMIT = 64
ENVIRON_LIMIT_BYTES = 128 << 10
ANSWER_S = 1.0  # it takes milliseconds
_VERSION = re.compile(r"(?<![0-9])[0-9]+\.[0-9]+(?:\.[0-9]+)*")
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG}


class Container(Protocol):
    """What is needed of a target."""

    @property
    def init_pid(self) -> int: ...

    @property
    def root_fd(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Own:
    """The same, with a descriptor that nobody else closes."""

    init_pid: int
    root_fd: int


class Libraries:
    """Holds targets against the profiles of their devices."""

    def __init__(self, host: Host, profiles: Profiles) -> None:
        self._host = host
        self._profiles = profiles
        self._questions = Questions(wait_s=ANSWER_S)

    def concerns(self, container: Container, devices: Iterable[Device]) -> tuple[Concern, ...]:
        """Return what is amiss, each thing once. Raises Unanswered where the target hangs us."""
        return self._questions.ask(
            container.init_pid, lambda: self._looked_at(container, tuple(devices))
        )

    def _looked_at(self, container: Container, devices: Iterable[Device]) -> tuple[Concern, ...]:
        with closing(os.dup(container.root_fd)) as root_fd:  # ours, should nobody wait any more
            return self._all_of(_Own(container.init_pid, root_fd), devices)

    def _all_of(self, container: Container, devices: Iterable[Device]) -> tuple[Concern, ...]:
        edits = {device.resource: device.edits for device in devices}
        found: dict[Concern, None] = {}
        for resource, brought in edits.items():
            profile = self._profiles.usual(resource)
            for concern in self._of(container, profile, brought):
                found[concern] = None
        return tuple(found)

    def _of(self, container: Container, profile: Profile, brought: Edits) -> Iterable[Concern]:
        libraries = profile.driver_libraries
        directories = _directories(container, libraries, brought)
        if libraries is not None:
            missing = [
                soname
                for soname in libraries.sonames
                if _end_of(container, soname, directories) is None
            ]
            if missing:
                yield Concern(
                    "LibrariesMissing",
                    f"the container has no {', '.join(missing)}: {libraries.advice}",
                )
                return
        if profile.version_check is not None:
            yield from self._versions(container, profile.version_check, directories)

    def _versions(
        self, container: Container, check: VersionCheck, directories: Iterable[str]
    ) -> Iterable[Concern]:
        """Say two versions that differ. Where one of them is not known there is nothing to say."""
        end = _end_of(container, check.container, directories)
        of_container = _version_in(end or "")
        of_node = self._version_on_node(check.node)
        if of_container and of_node and of_container != of_node:
            yield Concern(
                "VersionMismatch",
                f"{check.what}: {of_container} in the container, {of_node} on the node",
            )

    def _version_on_node(self, path: str) -> str:
        try:
            with named():
                end = self._host.find(path)
                by_name = _version_in(PurePosixPath(end.path).name)
                return by_name or ("" if end.is_directory() else _version_in(self._host.text(path)))
        except AllocationUnknown:
            return ""  # there is no such thing on this node


def _directories(
    container: Container, libraries: DriverLibraries | None, brought: Edits
) -> tuple[str, ...]:
    own = _library_path(container.init_pid)
    given = next((v.value.split(":") for v in brought.env if v.name == LIBRARY_PATH), [])
    named_by_profile = libraries.directories if libraries else []
    directories = dict.fromkeys((*USUAL, *named_by_profile, *given, *own))
    return tuple(d for d in directories if d.startswith("/"))[:DIRECTORIES_LIMIT]


def _library_path(pid: int) -> list[str]:
    try:
        with Path(f"/proc/{pid}/environ").open("rb") as file:
            variables = file.read(ENVIRON_LIMIT_BYTES).split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
    name = f"{LIBRARY_PATH}=".encode()
    value = next((v.removeprefix(name) for v in variables if v.startswith(name)), b"")
    return value.decode("utf-8", "replace").split(":")


def _end_of(container: Container, name: str, directories: Iterable[str]) -> str | None:
    """Return the name of the file that a soname, or a path, ends at in the container."""
    places = (name,) if name.startswith("/") else (f"{d}/{name}" for d in directories)
    for place in places:
        try:
            resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
            with closing(openat2(container.root_fd, place, flags=os.O_PATH, resolve=resolve)) as fd:
                return Path(f"/proc/self/fd/{fd}").readlink().name
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
    return None


def _version_in(text: str) -> str:
    """Return the first version in the first line."""
    first = text.partition("\n")[0]
    match = _VERSION.search(first)
    return match[0] if match else ""
