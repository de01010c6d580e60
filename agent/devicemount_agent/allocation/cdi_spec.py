# SPDX-License-Identifier: Apache-2.0
"""A CDI spec file, as specification 1.1.0 defines it.

The runtime's library refuses a file with a field that it does not know, so we do.
"""

import json
import re
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from devicemount_agent.profiles.document import CONSTRUCTION_ERRORS

SPEC_LIMIT_BYTES = 4 << 20  # the largest seen (16 GPUs with MIG) has 1 MB
VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
FAULT_LIMIT = 512  # of a message
MAJOR_LIMIT, MINOR_LIMIT = 1 << 12, 1 << 20  # of the kernel's device numbers
ID_LIMIT = (1 << 32) - 1  # of users and groups; -1 means nobody
_KIND = r"^[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"
_DEVICE = r"^[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?$"
_QUALIFIED = re.compile(f"{_KIND[1:-1]}={_DEVICE[1:-1]}")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 20 times faster where there is libyaml

Kind = Annotated[str, StringConstraints(pattern=_KIND)]
DeviceName = Annotated[str, StringConstraints(pattern=_DEVICE)]


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=False
    )


class Node(_Model):
    path: str
    host_path: str = ""
    type: Annotated[str, StringConstraints(pattern="^[bcup]?$")] = ""
    major: Annotated[int, Field(ge=0, lt=MAJOR_LIMIT)] = 0
    minor: Annotated[int, Field(ge=0, lt=MINOR_LIMIT)] = 0
    file_mode: int | None = None
    permissions: Annotated[str, StringConstraints(pattern="^([rwm]*|none)$")] = ""
    uid: Annotated[int, Field(ge=0, lt=ID_LIMIT)] | None = None
    gid: Annotated[int, Field(ge=0, lt=ID_LIMIT)] | None = None


class Mount(_Model):
    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""


class Hook(_Model):
    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class ContainerEdits(_Model):
    env: tuple[str, ...] = ()
    device_nodes: tuple[Node, ...] = ()
    net_devices: tuple[dict[str, str], ...] = ()
    hooks: tuple[Hook, ...] = ()
    mounts: tuple[Mount, ...] = ()
    intel_rdt: dict[str, Any] | None = None
    additional_gids: Annotated[tuple[int, ...], Field(alias="additionalGids")] = ()


class Device(_Model):
    name: DeviceName
    annotations: dict[str, str] = {}
    container_edits: ContainerEdits


class Spec(_Model):
    cdi_version: str
    kind: Kind
    annotations: dict[str, str] = {}
    container_edits: ContainerEdits = ContainerEdits()
    devices: tuple[Device, ...]


def parse(raw: bytes, *, is_json: bool) -> Spec:
    """Parse a file. Raises ValueError saying what is wrong with it."""
    if len(raw) > SPEC_LIMIT_BYTES:
        raise ValueError(f"is longer than {SPEC_LIMIT_BYTES} bytes")
    try:
        text = raw.decode()
        content = json.loads(text) if is_json else _yaml(text)
        spec = Spec.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(step) for step in fault["loc"])
        raise ValueError(f"{place}: {fault['msg']}"[:FAULT_LIMIT]) from error
    except (yaml.YAMLError, *CONSTRUCTION_ERRORS) as error:
        raise ValueError(str(error).replace("\n", " ")[:FAULT_LIMIT] or repr(error)) from error
    if spec.cdi_version.removeprefix("v") not in VERSIONS:
        raise ValueError(f"cdiVersion {spec.cdi_version[:20]} is not known (up to {VERSIONS[-1]})")
    return spec


def is_qualified(name: str) -> bool:
    """Tell whether it is vendor/class=device."""
    return _QUALIFIED.fullmatch(name) is not None


def _yaml(text: str) -> Any:
    """Parse YAML without aliases, of which a few lines can stand for gigabytes."""
    tokens = yaml.scan(text, Loader=_LOADER) if "*" in text else ()  # it takes as long as loading
    if any(isinstance(token, yaml.AliasToken) for token in tokens):
        raise ValueError("has a YAML alias (*name)")
    return yaml.load(text, Loader=_LOADER)  # noqa: S506  # a safe loader
