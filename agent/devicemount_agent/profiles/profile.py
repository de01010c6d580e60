# SPDX-License-Identifier: Apache-2.0
"""A profile: how the devices of a resource are learnt and what of the node may come with them.

It is written by people, so every refusal names the place and what to do, and unknown fields are
refused: a misspelt one would otherwise open or close something without a word. Fields that are left
out are the safe choice: nodes below /dev that the answer names, and no directory of the node's own.
"""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from devicemount_agent.profiles.paths import TOP, allowed_of_never, is_never, is_never_node

LIST_LIMIT = 64
TEXT_LIMIT = 512
DEV = PurePosixPath("/dev")

SourceName = Literal["checkpoint", "cdi", "resolver", "bundle", "live"]
Named = Literal["env", "ids"]  # what names the devices: the answer's variables, the kubelet's ids


def _check_resource(glob: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z./_*?-]{1,317}", glob):
        raise ValueError("must be a resource name, with * for anything: example.com/gpu*")
    return glob


def _check_node_pattern(text: str) -> str:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    if node := allowed_of_never(pattern):
        raise ValueError(f"allows {node}, which is never granted: make it narrower")
    return text


def _check_id_pattern(text: str) -> str:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    if pattern.groups or pattern.match(""):
        raise ValueError("must match whole ids, not nothing, and have no group but (?:...)")
    return text


def _check_directory(text: str) -> str:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts or str(path) != text:
        raise ValueError("must be a plain absolute path of the node")
    if is_never(path) or len(path.parts) <= TOP:
        raise ValueError("is the node's own, or holds what is: make it narrower")
    return text


def _check_path(text: str) -> str:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts or str(path) != text:
        raise ValueError("must be a plain absolute path")
    return text


def _check_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError("must be of lower-case letters, digits and '-', at most 63")
    return text


Text = Annotated[str, Field(min_length=1, max_length=TEXT_LIMIT)]
Glob = Text
Resource = Annotated[str, AfterValidator(_check_resource)]
NodePattern = Annotated[str, Field(max_length=TEXT_LIMIT), AfterValidator(_check_node_pattern)]
IdPattern = Annotated[Text, AfterValidator(_check_id_pattern)]
Directory = Annotated[str, AfterValidator(_check_directory)]
PlainPath = Annotated[str, Field(max_length=4096), AfterValidator(_check_path)]


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, alias_generator=to_camel, populate_by_name=False
    )


class When(_Model):
    """Of several profiles of a resource, the one whose condition the answer meets is taken."""

    env: Annotated[list[Glob], Field(max_length=LIST_LIMIT)] = []  # NAME or NAME=VALUE, with *
    mounts: Annotated[list[Glob], Field(max_length=LIST_LIMIT)] = []  # paths in the container

    @model_validator(mode="after")
    def _check(self) -> "When":
        if not (self.env or self.mounts):
            raise ValueError("must name env or mounts: else no answer meets it")
        return self


class NodeMap(_Model):
    """How ids, or the answer's variables, become nodes where the answer names none."""

    resolver: Literal["nvidiaProc", "ascend"]
    order: Annotated[list[Named], Field(min_length=1, max_length=2)]  # if both name some: alike


class DecidedBy(_Model):
    """A scheduler decides by an annotation and the plugin guesses the pod: what proves it ours."""

    annotations: Annotated[list[Text], Field(min_length=1, max_length=8)]  # the first that is there
    pattern: IdPattern  # what in it is an id, as a regular expression
    env: Text  # the answer's variable that must name the same ids, separated by commas
    pod_directory: PlainPath | None = None  # in the container: mounted from one named by pod UID


class DriverLibraries(_Model):
    """What programs load, so what a target must have to use the device."""

    sonames: Annotated[list[Text], Field(min_length=1, max_length=16)]
    directories: Annotated[
        list[PlainPath], Field(max_length=LIST_LIMIT)
    ] = []  # besides the usual ones
    advice: Text  # how a target comes to have them


class VersionCheck(_Model):
    """Two places whose versions must be equal."""

    what: Text
    node: (
        PlainPath  # a file with a version in its beginning, or a link whose end has one in its name
    )
    container: Text  # a soname, or a path whose end has a version in its name


class Profile(_Model):
    """One YAML file."""

    name: Annotated[str, AfterValidator(_check_name)]
    known: Literal["seen on hardware", "read in the code", "documented", "inferred"] = "inferred"
    resources: Annotated[list[Resource], Field(min_length=1, max_length=LIST_LIMIT)]
    when: When | None = None
    refused: Text | None = None  # why the resource is not served at all
    counts_only: bool = False  # a number beside another resource, no device
    mounts_only: bool = False  # the answer's mounts are all there is of the device: it has no node
    source: Annotated[list[SourceName], Field(min_length=1, max_length=8)] = ["checkpoint", "cdi"]
    node_map: NodeMap | None = None
    confirm: Literal["bundle", "live"] | None = None  # must show what the other sources say
    pci_vendor: Annotated[str, Field(pattern="^0x[0-9a-f]{4}$")] | None = None  # of shown nodes
    decided_by: DecidedBy | None = None
    serialised: Literal["none", "node"] = "none"  # one attach at a time
    allow_nodes: Annotated[list[NodePattern], Field(max_length=LIST_LIMIT)] | None = None
    allow_mounts: Annotated[list[Directory], Field(max_length=LIST_LIMIT)] | None = None
    ignore_mounts: Annotated[list[Glob], Field(max_length=LIST_LIMIT)] = []  # in the container
    ignore_env: Annotated[list[Glob], Field(max_length=LIST_LIMIT)] = []
    env_critical: Annotated[list[Glob], Field(max_length=LIST_LIMIT)] = []
    driver_libraries: DriverLibraries | None = None
    version_check: VersionCheck | None = None

    def allows_node(self, host_path: str) -> bool:
        """Tell whether this place of the node, after symlinks, is one of the resource's."""
        if self.allow_nodes is None:
            return DEV in PurePosixPath(host_path).parents
        return not is_never_node(host_path) and any(
            re.fullmatch(pattern, host_path) for pattern in self.allow_nodes
        )

    def allowed_mounts(self) -> tuple[PurePosixPath, ...] | None:
        return None if self.allow_mounts is None else tuple(map(PurePosixPath, self.allow_mounts))

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
