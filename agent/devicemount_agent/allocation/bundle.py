# SPDX-License-Identifier: Apache-2.0
"""Reader `bundle`: the OCI spec with which the shadow container was started.

A vendor's wrapper of runc edits this file before runc reads it, so it shows what neither the answer
nor CRI does. What its hooks did is said as for CDI, whose hooks runtimes put here (hooks.py); what
others did at the start it does not show: that is reader `live`'s, and so is all of Docker's, whose
bundles are elsewhere.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import msgspec

from devicemount_agent.allocation.cdi_spec import Hook
from devicemount_agent.allocation.grafted import access_of, inside, mounted
from devicemount_agent.allocation.hooks import Around, said_by
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.said import LIBRARY_PATH, Said, Subject, joined
from devicemount_agent.allocation.shown import (
    Runtime,
    is_mountable,
    is_standard_node,
    is_vendors_mount,
    node_shown,
    running_hold,
)
from devicemount_agent.container.cri import ContainerFacts
from devicemount_agent.errors import AllocationUnknown
from devicemount_agent.kernel.files import beginning_of, regular_file
from devicemount_agent.logs import line
from devicemount_agent.model import DeviceNode, DeviceNumber, Edits, EnvVar

BUNDLE_LIMIT_BYTES = 4 << 20
TASKS = "io.containerd.runtime.v2.task/k8s.io"
_BIND = {"bind", "rbind"}

log = logging.getLogger(__name__)


class _Device(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    type: str
    major: int = 0
    minor: int = 0


class _Rule(msgspec.Struct, frozen=True, kw_only=True):
    allow: bool
    type: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = ""


class _Resources(msgspec.Struct, frozen=True, kw_only=True):
    devices: tuple[_Rule, ...] = ()


class _Linux(msgspec.Struct, frozen=True, kw_only=True):
    devices: tuple[_Device, ...] = ()
    resources: _Resources = _Resources()


class _Mount(msgspec.Struct, frozen=True, kw_only=True):
    destination: str
    source: str = ""
    type: str = ""
    options: tuple[str, ...] = ()


class _Process(msgspec.Struct, frozen=True, kw_only=True):
    env: tuple[str, ...] = ()


class _Hook(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    args: tuple[str, ...] = ()


class _Hooks(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    create_container: tuple[_Hook, ...] = ()  # CDI's, and all of NVIDIA's that edit a container


class _Spec(msgspec.Struct, frozen=True, kw_only=True):
    linux: _Linux = _Linux()
    mounts: tuple[_Mount, ...] = ()
    process: _Process = _Process()
    hooks: _Hooks = _Hooks()


class Bundle:
    """The bundles below the runtime's state directories."""

    def __init__(self, host: Host, runtime: Runtime, states: Iterable[Path]) -> None:
        self._host = host
        self._runtime = runtime
        self._states = tuple(states)

    async def read(self, subject: Subject) -> Said | None:
        """Wait for the shadow container, then read its bundle; None where that shows no device."""
        facts = await running_hold(self._runtime, subject.shadow_uid)
        return await asyncio.to_thread(self._shown, subject, facts)

    def _shown(self, subject: Subject, facts: ContainerFacts) -> Said | None:
        spec = self._spec(facts)
        if spec is None:
            return None
        nodes = tuple(
            node
            for device in spec.linux.devices
            if device.type in {"c", "u", "b"} and not is_standard_node(device.path)
            if (node := self._node(subject, device, spec.linux.resources)) is not None
        )
        if not nodes:
            return None
        files = [
            mounted(
                self._host,
                subject.profile,
                mount.source,
                path=mount.destination,
                read_only="ro" in mount.options,
            )
            for mount in spec.mounts
            if self._is_vendors(subject, mount, facts)
        ]
        env = {name: value for name, _, value in (x.partition("=") for x in spec.process.env)}
        kept = tuple(EnvVar(name, value) for name, value in env.items() if name == LIBRARY_PATH)
        around = Around(
            device="the shadow pod's container",
            host=self._host,
            mounts=[mount for part in files for mount in part.edits.mounts],
            env=env,
        )
        hooked = [
            said_by(Hook(hook_name="createContainer", path=hook.path, args=hook.args), around)
            for hook in spec.hooks.create_container
        ]
        return joined(subject.resource, Said(nodes), *files, Said(edits=Edits(env=kept)), *hooked)

    def _spec(self, facts: ContainerFacts) -> _Spec | None:
        for state in self._states:
            path = state / TASKS / facts.id / "config.json"
            try:
                with regular_file(path) as fd:
                    raw = beginning_of(fd, limit_bytes=BUNDLE_LIMIT_BYTES)
                return msgspec.json.decode(raw, type=_Spec)
            except FileNotFoundError:
                continue
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise AllocationUnknown(f"{path} is no OCI spec") from error
        log.warning(
            line("found no bundle", container=facts.id[:12], below=list(map(str, self._states)))
        )
        return None

    def _node(self, subject: Subject, device: _Device, rules: _Resources) -> DeviceNode | None:
        kind = "b" if device.type == "b" else "c"
        number = DeviceNumber(kind, device.major, device.minor)
        node = node_shown(self._host, subject, inside(device.path), number)
        if node is None:
            return None
        letters = "".join(rule.access for rule in rules.devices if _is_about(rule, number))
        return replace(node, access=access_of(letters))

    def _is_vendors(self, subject: Subject, mount: _Mount, facts: ContainerFacts) -> bool:
        is_bind = mount.type == "bind" or bool(_BIND & set(mount.options))
        return (
            is_bind
            and is_vendors_mount(mount.destination, facts.mounts)
            and is_mountable(self._host, subject, mount.source)
        )


def _is_about(rule: _Rule, number: DeviceNumber) -> bool:
    return (
        rule.allow
        and rule.type in {"a", number.kind}
        and rule.major in {None, -1, number.major}
        and rule.minor in {None, -1, number.minor}
    )
