# SPDX-License-Identifier: Apache-2.0
"""Reader `checkpoint`: what the device plugin answered the kubelet, as the checkpoint keeps it.

Nodes, mounts and variables; the CDI names in it are another reader's. Device files in /dev are
looked at where we are, all else in a thread: a path can lie on a file server that is silent.
"""

import asyncio

from devicemount_agent.allocation.grafted import access_of, mounted, nodes_of
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.said import Answer, Said, Subject, joined
from devicemount_agent.errors import AllocationUnknown
from devicemount_agent.model import Access, Edits, EnvVar
from devicemount_node_api import deviceplugin_pb2

PLAIN_LIMIT = 16  # device files

_IN_DEV = "/dev/"


class Answered:
    """The answer itself."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def read(self, subject: Subject) -> Said | None:
        answer = subject.answer
        if not (answer.devices or answer.mounts or answer.envs):
            return None
        if _is_plain(answer):
            return self._said(subject)  # 0.1 ms; a thread costs more than that
        return await asyncio.to_thread(self._said, subject)

    def _said(self, subject: Subject) -> Said:
        answer = subject.answer
        parts = [self._device(subject, spec) for spec in answer.devices]
        parts += (
            mounted(
                self._host,
                subject.profile,
                mount.host_path,
                path=mount.container_path,
                read_only=mount.read_only,
            )
            for mount in answer.mounts
        )
        env = tuple(EnvVar(name, value) for name, value in sorted(answer.envs.items()))
        return joined(subject.resource, *parts, Said(edits=Edits(env=env)))

    def _device(self, subject: Subject, spec: deviceplugin_pb2.DeviceSpec) -> Said:
        path = spec.container_path or spec.host_path
        access = access_of(spec.permissions)
        if access is Access.NONE:
            raise AllocationUnknown(f"{path} ({spec.permissions!r}) is no device in a container")
        return Said(nodes_of(self._host, subject.profile, spec.host_path, path=path, access=access))


def _is_plain(answer: Answer) -> bool:
    """Tell whether it is a few device files, as it mostly is."""
    return (
        not answer.mounts
        and len(answer.devices) <= PLAIN_LIMIT
        and all(spec.host_path.startswith(_IN_DEV) for spec in answer.devices)
    )
