# SPDX-License-Identifier: Apache-2.0
"""The configuration file: which resources there are and which device nodes stand for them.

It is written by an administrator, so every refusal names the file, the place in it and what to do.
Unknown keys are refused: a misspelt one would otherwise hide devices without a word.
"""

import re
from pathlib import Path
from typing import Annotated, NewType, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

ResourceName = NewType("ResourceName", str)  # "testbed.devicemount.io/loop"
DeviceID = NewType("DeviceID", str)  # "loop0"; with replicas "fuse::3"

MAX_RESOURCES = 64  # each costs a socket and a stream of the kubelet
MAX_PATHS = 256  # of one resource
MAX_REPLICAS = 256  # the kubelet writes each id into its checkpoint
MAX_PATH_LENGTH = 4096  # PATH_MAX

_DOMAIN = r"(?=.{1,253}/)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_RESOURCE = re.compile(rf"{_DOMAIN}/{_NAME}")


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


DevicePath = Annotated[str, Field(max_length=MAX_PATH_LENGTH), AfterValidator(_check_device_path)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Nodes(_Model):
    """Which nodes below /dev are devices: each match is one."""

    glob: DevicePath | None = None
    paths: Annotated[list[DevicePath], Field(min_length=1, max_length=MAX_PATHS)] | None = None

    @model_validator(mode="after")
    def _check_one_is_given(self) -> Self:
        if (self.glob is None) == (self.paths is None):
            raise ValueError("give either 'glob' or 'paths'")
        return self


class Resource(_Model):
    """One extended resource."""

    name: Annotated[str, AfterValidator(_check_resource_name)]
    nodes: Nodes
    replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = 1  # how many may have one device


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
    """Read and check the file; raise ConfigError with all that is wrong in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
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
