# SPDX-License-Identifier: Apache-2.0
"""The configuration: which resources there are and which device nodes stand for them.

It is written by an administrator, so every refusal names the file, the place in it and what to do.
Unknown keys are refused: a misspelt one would otherwise hide devices without a word.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, NewType, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

ResourceName = NewType("ResourceName", str)  # "testbed.devicemount.io/loop"
DeviceID = NewType("DeviceID", str)  # "loop0", "0000:3b:00.0"; with replicas "fuse::3"

MAX_RESOURCES = 64  # each costs a socket and a stream of the kubelet
MAX_PATHS = 256  # of one resource
MAX_REPLICAS = 256  # the kubelet writes each id into its checkpoint
MAX_PATH_LENGTH = 4096  # PATH_MAX
MAX_ENTRIES = 64  # of any other list: more is a mistake
MAX_TEXT_LENGTH = 4096  # of a value; all of them travel in each answer and in the checkpoint

_DOMAIN = r"(?=.{1,253}/)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_RESOURCE = re.compile(rf"{_DOMAIN}/{_NAME}")
_CDI = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]*/[A-Za-z0-9][-A-Za-z0-9_]*=[-A-Za-z0-9_.:{}]+")


class ConfigError(Exception):
    """The configuration cannot be used; the text is for the administrator."""


def _check_resource_name(name: str) -> str:
    if not _RESOURCE.fullmatch(name):
        raise ValueError("must look like domain/name, for example example.com/gadget")
    domain = name.partition("/")[0]
    if domain == "kubernetes.io" or domain.endswith(".kubernetes.io"):
        raise ValueError("kubernetes.io is reserved: take a domain of your own")
    if name.startswith("requests."):
        raise ValueError("must not begin with 'requests.', which quotas use")
    return name


def _check_device_path(path: str) -> str:
    if not path.startswith("/dev/"):
        raise ValueError("must begin with /dev/, as on the node")
    if any(part in ("", ".", "..") for part in path.split("/")[1:]):
        raise ValueError("must not contain '//', '.' or '..' and must not end with '/'")
    return path


def _check_pattern(pattern: str) -> str:
    if "**" in pattern:
        raise ValueError("must not contain '**': name the directory")
    return _check_device_path(pattern)


def _check_path(path: str) -> str:
    if not path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")[1:]):
        raise ValueError("must be absolute and must not contain '//', '.' or '..'")
    return path


def _check_attribute(path: str) -> str:
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("must be a path below the device's directory in /sys, without '..'")
    return path


def _check_placeholder(path: str) -> str:
    """Let `{name}` stand for the last part of the node's path, and nothing else in braces."""
    if re.search(r"[{}]", path.replace("{name}", "")):
        raise ValueError("{name}, the node's own name, is the only placeholder")
    return _check_device_path(path)


def _check_access(access: str) -> str:
    if not access or set(access) - set("rwm") or len(set(access)) != len(access):
        raise ValueError("must be made of r (read), w (write) and m (mknod), each once")
    return "".join(letter for letter in "rwm" if letter in access)


def _check_env_name(name: str) -> str:
    if not name or set(name) & {"=", "\0"}:
        raise ValueError("must be the name of a variable: not empty and without '='")
    return name


def _check_cdi(name: str) -> str:
    if not _CDI.fullmatch(name) or "{id}" not in name:
        raise ValueError("must look like vendor/class={id}, for example example.com/gadget={id}")
    return name


def _check_hexadecimal(number: object) -> object:
    """YAML reads 7030 as a number and 0403 as an octal one, so that quotes are needed."""
    if not isinstance(number, str) or not re.fullmatch("[0-9a-f]{4}", number):
        raise ValueError('must be four hexadecimal digits in lower case and quotes, as "1f36"')
    return number


Text = Annotated[str, Field(max_length=MAX_TEXT_LENGTH)]
DevicePath = Annotated[str, Field(max_length=MAX_PATH_LENGTH), AfterValidator(_check_device_path)]
DevicePattern = Annotated[str, Field(max_length=MAX_PATH_LENGTH), AfterValidator(_check_pattern)]
ContainerDevicePath = Annotated[
    str, Field(max_length=MAX_PATH_LENGTH), AfterValidator(_check_placeholder)
]
AbsolutePath = Annotated[str, Field(max_length=MAX_PATH_LENGTH), AfterValidator(_check_path)]
Hexadecimal = Annotated[str, BeforeValidator(_check_hexadecimal)]
EnvName = Annotated[str, Field(max_length=MAX_TEXT_LENGTH), AfterValidator(_check_env_name)]
GroupName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]{0,30}[A-Za-z0-9])?$")]
DevicePaths = Annotated[list[DevicePath], Field(min_length=1, max_length=MAX_PATHS)]


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, alias_generator=to_camel, validate_by_name=False
    )


class Nodes(_Model):
    """Which nodes below /dev are devices: each match is one."""

    glob: DevicePattern | None = None
    paths: DevicePaths | None = None

    @model_validator(mode="after")
    def _check_one_is_given(self) -> Self:
        if (self.glob is None) == (self.paths is None):
            raise ValueError("give either 'glob' or 'paths'")
        return self


class Pci(_Model):
    """PCI functions: each is a device, with the nodes that its driver made."""

    vendor: Hexadecimal
    device: Hexadecimal | None = None
    driver: Text | None = None  # the only one that will do; default: any that is bound
    nodes: Annotated[list[DevicePattern], Field(max_length=MAX_ENTRIES)] = []  # each must match


class Usb(_Model):
    """USB devices: each is a device, with the nodes that its drivers made."""

    vendor: Hexadecimal
    product: Hexadecimal
    serial: Text | None = None
    nodes: Annotated[list[DevicePattern], Field(max_length=MAX_ENTRIES)] = []  # each must match


class Mount(_Model):
    """A file or directory of the node that containers with the resource get."""

    host_path: AbsolutePath
    container_path: AbsolutePath
    read_only: bool = True


class Check(_Model):
    """An attribute in sysfs, below the device's directory, that tells of its health."""

    attribute: Annotated[str, Field(max_length=256), AfterValidator(_check_attribute)]
    healthy: Annotated[list[Text], Field(min_length=1, max_length=MAX_ENTRIES)]


class Resource(_Model):
    """One extended resource."""

    name: Annotated[str, AfterValidator(_check_resource_name)]
    nodes: Nodes | None = None
    groups: (
        Annotated[dict[GroupName, DevicePaths], Field(min_length=1, max_length=MAX_PATHS)] | None
    ) = None
    pci: Pci | None = None
    usb: Usb | None = None
    replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = 1  # how many may have one device
    expected: bool = False  # every node has it: none at all is said to be missing
    control: Annotated[list[DevicePath], Field(max_length=MAX_ENTRIES)] = []  # all containers get
    access: Annotated[str, AfterValidator(_check_access)] = "rw"
    container_path: ContainerDevicePath | None = None  # default: as on the node
    mounts: Annotated[list[Mount], Field(max_length=MAX_ENTRIES)] = []
    env: Annotated[dict[EnvName, Text], Field(max_length=MAX_ENTRIES)] = {}
    cdi: Annotated[str, Field(max_length=256), AfterValidator(_check_cdi)] | None = None
    health: Annotated[list[Check], Field(max_length=MAX_ENTRIES)] = []

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        sources = (self.nodes, self.groups, self.pci, self.usb)
        if sum(source is not None for source in sources) != 1:
            raise ValueError("give one of 'nodes', 'groups', 'pci' and 'usb'")
        return self

    @model_validator(mode="after")
    def _check_groups_share_nothing(self) -> Self:
        members = Counter(path for paths in (self.groups or {}).values() for path in set(paths))
        if shared := sorted(path for path, count in members.items() if count > 1):
            raise ValueError(
                f"{', '.join(shared)} is in several groups, so that two containers would get it:"
                " name what all devices share under 'control'"
            )
        return self

    @model_validator(mode="after")
    def _check_groups_fit_into_a_container(self) -> Self:
        for name, paths in (self.groups or {}).items():
            inside = Counter(self.inside(path) for path in set(paths))
            inside.update(path for path in set(self.control) - set(paths))
            if twice := sorted(path for path, count in inside.items() if count > 1):
                raise ValueError(
                    f"several nodes of group {name} would be {', '.join(twice)} in the container:"
                    " put {name} into 'containerPath', or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _check_cdi_stands_alone(self) -> Self:
        if self.cdi is not None and (self.container_path is not None or self.access != "rw"):
            raise ValueError("with 'cdi' the CDI specification says path and access: remove them")
        return self

    def inside(self, path: str) -> str:
        """Say where a device's own node is found in a container."""
        return (self.container_path or path).replace("{name}", path.rpartition("/")[2])


class Config(_Model):
    """The whole file."""

    resources: Annotated[list[Resource], Field(max_length=MAX_RESOURCES)]

    @model_validator(mode="after")
    def _check_names_differ(self) -> Self:
        names = [resource.name for resource in self.resources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is there twice: merge the entries")
        return self


def read_config(path: Path) -> Config:
    """Read and check a file, or every *.yaml of a directory; raise ConfigError with all faults."""
    if not path.is_dir():
        return _read_file(path)
    files = sorted(path.glob("*.yaml"))
    if not files:
        raise ConfigError(f"{path} has no *.yaml")
    resources = [one for file in files for one in _read_file(file).resources]
    return _check(path, {"resources": resources})


def _read_file(path: Path) -> Config:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        content = _load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date that is none
        raise ConfigError(f"{path} is no YAML: {error}") from error
    return _check(path, content)


def _load(text: str) -> object:
    """Parse YAML as `safe_load` does, but for a key that is there twice: that drops the first."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(node, seen=set())
        content: object = loader.construct_document(node)
        return content
    finally:
        loader.dispose()


def _check_keys(node: yaml.Node, *, seen: set[int]) -> None:
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return  # an alias may lead back to where it stands
    seen.add(id(node))
    keys = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if (key.tag, str(key.value)) in keys:
            raise yaml.MarkedYAMLError(
                problem=f"{key.value!r} is there twice: merge the two", problem_mark=key.start_mark
            )
        keys.add((key.tag, str(key.value)))
    for one in node.value:
        for below in one if isinstance(one, tuple) else (one,):
            _check_keys(below, seen=seen)


def _check(path: Path, content: object) -> Config:
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(path, error))) from error


def _describe(path: Path, error: ValidationError) -> list[str]:
    lines = []
    for fault in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in fault["loc"]) or "the file"
        advice = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            advice = "is not known: remove it or correct its spelling"
        lines.append(f"{path}: {place}: {advice}")
    return lines
