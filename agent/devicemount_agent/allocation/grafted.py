# SPDX-License-Identifier: Apache-2.0
"""From what a source names to what enters a container: nodes and mounts of the node, checked.

The one place where a path of a source becomes a DeviceNode or a BindMount, so the one place where
the profile's limits hold. They are asked of the place where the node's symlinks end.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from devicemount_agent.allocation.host import Found, Host
from devicemount_agent.allocation.said import NODES_LIMIT, Said
from devicemount_agent.errors import AllocationUnknown, NotAllowed
from devicemount_agent.model import Access, BindMount, DeviceNode, DeviceNumber, Edits
from devicemount_agent.profiles.paths import NEVER_NUMBERS
from devicemount_agent.profiles.profile import DEV, Profile


def access_of(permissions: str) -> Access:
    """Return what cgroup letters allow; mknod is a container's anyway."""
    read = Access.READ if "r" in permissions else Access.NONE
    write = Access.WRITE if "w" in permissions else Access.NONE
    return read | write


def inside(path: str) -> str:
    """Return a path in a container. Raises AllocationUnknown unless it is a plain absolute one."""
    plain = PurePosixPath(path)
    if not plain.is_absolute() or ".." in plain.parts or len(plain.parts) == 1 or "\0" in path:
        raise AllocationUnknown(f"{path!r} is no path in a container")
    return str(plain)


def nodes_of(
    host: Host, profile: Profile, host_path: str, *, path: str, access: Access
) -> tuple[DeviceNode, ...]:
    """Return the nodes of one device: a directory means those below it, as runtimes do it."""
    path = inside(path)
    with named():
        found = host.find(host_path)
        if not found.is_directory():
            return (node_of(profile, found, path=path, access=access),)
        if DEV not in PurePosixPath(found.path).parents:  # /dev itself would mean everything
            raise NotAllowed(f"{host_path} is {found.path}, outside of {DEV}")
        nodes: list[DeviceNode] = []
        for below, file in host.below(found.path):
            if file.number() is not None:
                place = path + below.removeprefix(found.path)
                nodes.append(node_of(profile, file, path=place, access=access))
            if len(nodes) > NODES_LIMIT:
                raise AllocationUnknown(f"{host_path} holds more than {NODES_LIMIT} device nodes")
        return tuple(nodes)


def node_of(profile: Profile, found: Found, *, path: str, access: Access) -> DeviceNode:
    """Return one node. Raises AllocationUnknown if it is none, NotAllowed outside the limits."""
    if not profile.allows_node(found.path):
        limit = DEV if profile.allow_nodes is None else f"allowNodes of profile {profile.name}"
        raise NotAllowed(f"{path} is {found.path}, outside of {limit}")
    number = found.number()
    if number is None:
        raise AllocationUnknown(f"{found.path} is no device node")
    check_number(number, path)
    return DeviceNode(
        path=path,
        host_path=found.path,
        number=number,
        access=access,
        uid=found.uid,  # whoever the container's user is: so runtimes do it with a plugin's nodes
        gid=found.gid,
    )


def check_number(number: DeviceNumber, path: str) -> None:
    """Raise NotAllowed for the node's memory and kernel log, whatever they are called."""
    if (number.kind, number.major, number.minor) in NEVER_NUMBERS:
        raise NotAllowed(f"{path} is {number.kind} {number.major}:{number.minor}: never granted")


def mounted(
    host: Host,
    profile: Profile,
    host_path: str,
    *,
    path: str,
    read_only: bool,
    no_exec: bool = False,
) -> Said:
    """Return what a mount brings.

    A device node is not mounted (its number decides, not the mount): it is made like one, without
    a rule of its own.
    """
    path = inside(path)
    if profile.ignores_mount(path):
        return Said()
    with named():
        found = host.find(host_path)
        if found.number() is not None:
            return Said(nodes=(node_of(profile, found, path=path, access=Access.NONE),))
        if why := profile.why_not_mounted(found.path, host.moved):
            raise NotAllowed(f"mount {host_path} ({found.path}): {why}")
        mount = BindMount(path, found.path, read_only=read_only, no_exec=no_exec)
        return Said(edits=Edits(mounts=(mount,)))


@contextmanager
def named() -> Iterator[None]:
    """Say what is not there, or leads nowhere, as AllocationUnknown: it may still come."""
    try:
        yield
    except FileNotFoundError as error:
        raise AllocationUnknown(f"{error.filename} does not exist on the node") from error
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL}:
            raise AllocationUnknown(f"{error.filename}: {error.strerror}") from error
        raise
