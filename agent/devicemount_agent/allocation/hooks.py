# SPDX-License-Identifier: Apache-2.0
"""CDI hooks: programs that a runtime would start while it makes a container.

We start none. What a hook would have done to the container is said as edits where we know it, by
the hook's name and arguments (of NVIDIA's, which other vendors copied); a hook that we do not know
could be what makes the device usable or safe, so it is refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from devicemount_agent.allocation.cdi_spec import Hook
from devicemount_agent.allocation.grafted import inside
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.said import LIBRARY_PATH, Said
from devicemount_agent.errors import AllocationUnknown
from devicemount_agent.model import BindMount, Edits, EnvVar, Link, Overlaid

NVIDIA_PARAMS = "/proc/driver/nvidia/params"
MEMORY_LIMITS = ("NVIDIA_GPU_MEMORY_REQUEST", "NVIDIA_GPU_MEMORY_LIMIT")
DIRECTORY_MODE = "755"  # of the directories that we make

# Not done, and why: the target's CUDA is its own; the profile concerns graphics on a local screen.
NEEDLESS = frozenset({"enable-cuda-compat", "update-application-profile"})


@dataclass(frozen=True, slots=True)
class Around:
    """What hooks are asked about."""

    device: str  # qualified name, for messages
    host: Host
    mounts: Sequence[BindMount]  # that come with the hooks
    env: Mapping[str, str]  # all that the container would have been started with


def said_by(hook: Hook, around: Around) -> Said:
    """Return what the hook would have done. Raises AllocationUnknown for one that we do not do."""
    name, options = _parsed(hook)
    match name:
        case "create-symlinks":
            return Said(edits=Edits(links=tuple(map(_link, options.get("link", ())))))
        case "update-ldcache" | "create-soname-symlinks":
            folders = tuple(dict.fromkeys(map(inside, options.get("folder", ()))))
            return Said(edits=_libraries(folders, around))
        case "disable-device-node-modification":
            return Said(edits=Edits(overlaid=nvidia_params(around.host)))
        case "apply-cuda-memory-limits" if not any(v in around.env for v in MEMORY_LIMITS):
            return Said()
        case "chmod" if options.get("mode", ()) in ((DIRECTORY_MODE,), ("0" + DIRECTORY_MODE,)):
            return Said()
        case _ if name in NEEDLESS:
            return Said()
    arguments = " ".join(hook.args[1:])[:200]
    raise AllocationUnknown(
        f"{around.device}: its CDI hook {hook.path} ({arguments or 'no arguments'}) is not one that"
        " can be carried out in a running container"
    )


def nvidia_params(host: Host) -> tuple[Overlaid, ...]:
    """Return the driver's parameters saying that programs are not to make device nodes.

    Nothing where there is no such file: then nobody reads it.
    """
    try:
        lines = host.text(NVIDIA_PARAMS).splitlines()
    except FileNotFoundError:
        return ()
    changed = ("ModifyDeviceFiles: 0" if x.startswith("ModifyDeviceFiles:") else x for x in lines)
    return (Overlaid(NVIDIA_PARAMS, "".join(f"{text}\n" for text in changed)),)


def _parsed(hook: Hook) -> tuple[str, dict[str, tuple[str, ...]]]:
    """Return the hook's name and its options; argument 0 is the program's name."""
    words = list(hook.args[1:])
    if words[:1] == ["hook"]:  # nvidia-ctk hook NAME; nvidia-cdi-hook NAME
        words.pop(0)
    if not words or words[0].startswith("-"):
        return "", {}
    name, options = words.pop(0), dict[str, tuple[str, ...]]()
    while words:
        option, has_value, value = words.pop(0).partition("=")
        if not has_value and words and not words[0].startswith("--"):
            value = words.pop(0)
        key = option.lstrip("-")
        options[key] = (*options.get(key, ()), value)
    return name, options


def _link(pair: str) -> Link:
    target, separator, path = pair.partition("::")
    if not separator or not target or "\0" in target:
        raise AllocationUnknown(f"{pair!r} is no symlink of a CDI hook")
    return Link(inside(path), target)


def _libraries(folders: tuple[str, ...], around: Around) -> Edits:
    """Return what makes programs find the libraries, as the loader's cache would."""
    links = tuple(
        link
        for mount in around.mounts
        if str(PurePosixPath(mount.path).parent) in folders
        for link in soname_links(around.host, mount)
    )
    env = (EnvVar(LIBRARY_PATH, ":".join(folders)),) if folders else ()
    return Edits(links=links, env=env)


def soname_links(host: Host, mount: BindMount) -> tuple[Link, ...]:
    """Return the links that ldconfig made for a library on the node, for its place in a container.

    Programs ask for libcuda.so.1; what is mounted is libcuda.so.575.57.08.
    """
    library = PurePosixPath(mount.host_path)
    if ".so." not in library.name:
        return ()
    stem = library.name.partition(".so.")[0] + ".so."
    there = PurePosixPath(mount.path)
    return tuple(
        Link(str(there.parent / name), there.name)
        for name in host.names(str(library.parent))
        if name.startswith(stem) and host.link(str(library.parent / name)) == library.name
    )
