# SPDX-License-Identifier: Apache-2.0
"""A CDI spec file, as specification 1.1.0 defines it.

The runtime's library refuses a file with a field that it does not know, so we do.
"""

import json
import re
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta, Struct

from devicemount_agent.profiles.document import CONSTRUCTION_ERRORS

SPEC_LIMIT_BYTES = 4 << 20  # the largest seen (16 GPUs with MIG) has 1 MB
VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
FAULT_LIMIT = 512  # of a message
MAJOR_LIMIT, MINOR_LIMIT = 1 << 12, 1 << 20  # of the kernel's device numbers
ID_LIMIT = (1 << 32) - 1  # of users and groups; -1 means nobody
_KIND = r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?"
_DEVICE = r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?"
_QUALIFIED = re.compile(f"{_KIND}={_DEVICE}")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 20 times faster where there is libyaml


Kind = Annotated[str, Meta(pattern=rf"^{_KIND}\Z")]
DeviceName = Annotated[str, Meta(pattern=rf"^{_DEVICE}\Z")]
Id = Annotated[int, Meta(ge=0, lt=ID_LIMIT)]


class _Model(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    pass


class Node(_Model, frozen=True, kw_only=True):
    path: str
    host_path: str = ""
    type: Annotated[str, Meta(pattern=r"^[bcup]?\Z")] = ""
    major: Annotated[int, Meta(ge=0, lt=MAJOR_LIMIT)] = 0
    minor: Annotated[int, Meta(ge=0, lt=MINOR_LIMIT)] = 0
    file_mode: int | None = None
    permissions: Annotated[str, Meta(pattern=r"^([rwm]*|none)\Z")] = ""
    uid: Id | None = None
    gid: Id | None = None


class Mount(_Model, frozen=True, kw_only=True):
    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""


class Hook(_Model, frozen=True, kw_only=True):
    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class ContainerEdits(_Model, frozen=True, kw_only=True):
    env: tuple[str, ...] = ()
    device_nodes: tuple[Node, ...] = ()
    net_devices: tuple[dict[str, str], ...] = ()
    hooks: tuple[Hook, ...] = ()
    mounts: tuple[Mount, ...] = ()
    intel_rdt: dict[str, Any] | None = None
    additional_gids: tuple[int, ...] = ()


class Device(_Model, frozen=True, kw_only=True):
    name: DeviceName
    annotations: dict[str, str] = {}
    container_edits: ContainerEdits


class Spec(_Model, frozen=True, kw_only=True):
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
        spec = msgspec.convert(content, Spec)
        msgspec.json.encode(spec)  # an escape can write what is no text
    except msgspec.ValidationError as error:
        raise ValueError(str(error)[:FAULT_LIMIT]) from error
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
