# SPDX-License-Identifier: Apache-2.0
"""A profile: how the devices of a resource are learnt and what of the node may come with them.

It is written by people, so every refusal names the place and what to do, and unknown fields are
refused: a misspelt one would otherwise open or close something without a word. Fields that are left
out are the safe choice: nodes below /dev that the answer names, and no directory of the node's own.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Annotated, Literal

from msgspec import Meta, Struct

from devicemount_agent.profiles.paths import (
    TOP,
    allowed_of_never,
    is_never,
    is_never_node,
    why_not_mounted,
)

LIST_LIMIT = 64
TEXT_LIMIT = 512
PATH_LIMIT = 4096
DEV = PurePosixPath("/dev")

SourceName = Literal["checkpoint", "cdi", "resolver", "bundle", "live"]
Named = Literal["env", "ids"]  # what names the devices: the answer's variables, the kubelet's ids


def _check_resource(glob: str) -> None:
    if not re.fullmatch(r"[0-9A-Za-z./_*?-]{1,317}", glob):
        raise ValueError("must be a resource name, with * for anything: example.com/gpu*")


def _check_node_pattern(text: str) -> None:
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is no regular expression: {error}") from error
    if node := allowed_of_never(pattern):
        raise ValueError(f"allows {node}, which is never granted: make it narrower")


def _check_id_pattern(text: str) -> None:
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is no regular expression: {error}") from error
    if pattern.groups or pattern.match(""):
        raise ValueError("must match whole ids, not nothing, and have no group but (?:...)")


def _check_directory(text: str) -> None:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts or str(path) != text:
        raise ValueError("must be a plain absolute path of the node")
    if is_never(path) or len(path.parts) <= TOP:
        raise ValueError("is the node's own, or holds what is: make it narrower")


def _check_path(text: str) -> None:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts or str(path) != text:
        raise ValueError("must be a plain absolute path")


def _check_name(text: str) -> None:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError("must be of lower-case letters, digits and '-', at most 63")


class Misfit(ValueError):
    """What stands at one place below the object that refuses it."""

    def __init__(self, place: tuple[int | str, ...], reason: str) -> None:
        super().__init__(reason)
        self.place = place


def _check(value: str | None, check: Callable[[str], None], *place: int | str) -> None:
    if value is None:
        return
    try:
        check(value)
    except ValueError as error:
        raise Misfit(place, str(error)) from error


def _check_each(values: Iterable[str] | None, check: Callable[[str], None], field: str) -> None:
    for position, value in enumerate(values or ()):
        _check(value, check, field, position)


LIST = Meta(max_length=LIST_LIMIT)
SOME = Meta(min_length=1, max_length=16)
Text = Annotated[str, Meta(min_length=1, max_length=TEXT_LIMIT)]
Glob = Text
Globs = Annotated[tuple[Glob, ...], LIST]
PlainPath = Annotated[str, Meta(max_length=PATH_LIMIT)]
NodePattern = Annotated[str, Meta(max_length=TEXT_LIMIT)]
Order = Annotated[tuple[Named, ...], Meta(min_length=1, max_length=2)]


class _Model(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What is refused by its type is told by msgspec, the rest by `Misfit`."""


class When(_Model, frozen=True, kw_only=True):
    """Of several profiles of a resource, the one whose condition the answer meets is taken."""

    env: Globs = ()  # NAME or NAME=VALUE, with *
    mounts: Globs = ()  # paths in the container

    def __post_init__(self) -> None:
        if not (self.env or self.mounts):
            raise Misfit((), "must name env or mounts: else no answer meets it")


class RefusedWith(_Model, frozen=True, kw_only=True):
    """Annotations of the shadow pod with which the resource is not served."""

    annotations: Annotated[tuple[Glob, ...], SOME]  # keys, with *
    why: Text


class NodeMap(_Model, frozen=True, kw_only=True):
    """How ids, or the answer's variables, become nodes where the answer names none."""

    resolver: Literal["nvidiaProc", "ascend"]
    order: Order  # if both name some: alike


class DecidedBy(_Model, frozen=True, kw_only=True):
    """A scheduler decides by an annotation and the plugin guesses the pod: what proves it ours."""

    annotations: Annotated[tuple[Text, ...], SOME]  # the first that is there
    pattern: Text  # what in it is an id, as a regular expression
    env: Text  # the answer's variable that must name the same ids, separated by commas
    pod_directory: PlainPath | None = None  # in the container: mounted from one named by pod UID

    def __post_init__(self) -> None:
        _check(self.pattern, _check_id_pattern, "pattern")
        _check(self.pod_directory, _check_path, "podDirectory")


class DriverLibraries(_Model, frozen=True, kw_only=True):
    """What programs load, so what a target must have to use the device."""

    sonames: Annotated[tuple[Text, ...], SOME]
    directories: Annotated[tuple[PlainPath, ...], LIST] = ()  # besides usual ones
    advice: Text  # how a target comes to have them

    def __post_init__(self) -> None:
        _check_each(self.directories, _check_path, "directories")


class VersionCheck(_Model, frozen=True, kw_only=True):
    """Two places whose versions must be equal."""

    what: Text
    node: PlainPath  # a file that begins with a version, or a link whose end has one in its name
    container: Text  # a soname, or a path whose end has a version in its name

    def __post_init__(self) -> None:
        _check(self.node, _check_path, "node")


class Profile(_Model, frozen=True, kw_only=True):
    """One YAML file."""

    name: str
    known: Literal["seen on hardware", "read in the code", "documented", "inferred"] = "inferred"
    resources: Annotated[tuple[str, ...], Meta(min_length=1, max_length=LIST_LIMIT)]
    when: When | None = None
    refused: Text | None = None  # why the resource is not served at all
    refused_with: RefusedWith | None = None
    counts_only: bool = False  # a number beside another resource, no device
    mounts_only: bool = False  # the answer's mounts are all there is of the device: it has no node
    source: Annotated[tuple[SourceName, ...], SOME] = ("checkpoint", "cdi")
    node_map: NodeMap | None = None
    confirm: Literal["bundle", "live"] | None = None  # must show what the other sources say
    pci_vendor: Annotated[str, Meta(pattern=r"^0x[0-9a-f]{4}\Z")] | None = None  # of shown nodes
    decided_by: DecidedBy | None = None
    serialised: Literal["none", "node"] = "none"  # one attach at a time
    allow_nodes: Annotated[tuple[NodePattern, ...], LIST] | None = None
    allow_mounts: Annotated[tuple[str, ...], LIST] | None = None
    also_mounts: Annotated[tuple[str, ...], LIST] = ()  # besides these, or besides the default
    ignore_mounts: Globs = ()  # in the container
    ignore_env: Globs = ()
    env_critical: Globs = ()
    driver_libraries: DriverLibraries | None = None
    version_check: VersionCheck | None = None

    def __post_init__(self) -> None:
        _check(self.name, _check_name, "name")
        _check_each(self.resources, _check_resource, "resources")
        _check_each(self.allow_nodes, _check_node_pattern, "allowNodes")
        _check_each(self.allow_mounts, _check_directory, "allowMounts")
        _check_each(self.also_mounts, _check_directory, "alsoMounts")
        self._check_when()

    def _check_when(self) -> None:
        """Refuse what is asked while there is no answer (yet, or any more) that could meet it."""
        if self.when is None:
            return
        for field, is_there in (
            ("serialised", self.serialised != "none"),
            ("driverLibraries", self.driver_libraries is not None),
            ("versionCheck", self.version_check is not None),
        ):
            if is_there:
                raise Misfit(
                    (field,), "has no effect beside when: it belongs into a profile without"
                )

    def allows_node(self, host_path: str) -> bool:
        """Tell whether this place of the node, after symlinks, is one of the resource's."""
        if self.allow_nodes is None:
            return DEV in PurePosixPath(host_path).parents
        return not is_never_node(host_path) and any(
            re.fullmatch(pattern, host_path) for pattern in self.allow_nodes
        )

    def why_not_mounted(self, host_path: str, moved: Collection[PurePosixPath]) -> str:
        """Return why this place of the node, after symlinks, does not enter a container."""
        allowed = self.allow_mounts
        return why_not_mounted(
            PurePosixPath(host_path),
            allowed=None if allowed is None else tuple(map(PurePosixPath, allowed)),
            also=tuple(map(PurePosixPath, self.also_mounts)),
            moved=moved,
        )

    def ignores_mount(self, path: str) -> bool:
        return any(fnmatchcase(path, glob) for glob in self.ignore_mounts)

    def critical(self, names: Iterable[str]) -> list[str]:
        """Return the variables without which the device is not what was allocated."""
        return [n for n in names if any(fnmatchcase(n, glob) for glob in self.env_critical)]

    def meets(self, env: Mapping[str, str], mounts: Iterable[str]) -> bool:
        """Tell whether an answer meets the condition."""
        if self.when is None:
            return True
        facts = [*env, *(f"{name}={value}" for name, value in env.items())]
        return any(fnmatchcase(fact, glob) for fact in facts for glob in self.when.env) or any(
            fnmatchcase(path, glob) for path in mounts for glob in self.when.mounts
        )

    def closeness(self, resource: str) -> int:
        """Return how closely it names the resource: more is closer, -1 not at all."""
        return max(
            (len(glob.replace("*", "")) for glob in self.resources if fnmatchcase(resource, glob)),
            default=-1,
        )
