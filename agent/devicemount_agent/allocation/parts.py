# SPDX-License-Identifier: Apache-2.0
"""All readers of a node, put together: the one place that knows them all by name."""

import logging
from pathlib import Path

from devicemount_agent.allocation.answered import Answered
from devicemount_agent.allocation.ascend import Ascend
from devicemount_agent.allocation.bundle import Bundle
from devicemount_agent.allocation.cdi import Cdi
from devicemount_agent.allocation.facts import Facts
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.kubelet import Checkpoint, PodResources
from devicemount_agent.allocation.libraries import Libraries
from devicemount_agent.allocation.live import Live
from devicemount_agent.allocation.nvidia import Instances, NvidiaProc, nobody_knows
from devicemount_agent.allocation.own import moved_on
from devicemount_agent.allocation.read import Allocation
from devicemount_agent.allocation.resolver import Resolving
from devicemount_agent.allocation.sources import ReaderSources
from devicemount_agent.container.cri import Runtime
from devicemount_agent.graft.mountinfo import mounts_of
from devicemount_agent.logs import line
from devicemount_agent.profiles.store import Profiles
from devicemount_agent.settings import Settings

log = logging.getLogger(__name__)


def allocation_on(
    settings: Settings,
    *,
    checkpoint: Checkpoint,
    pod_resources: PodResources,
    runtime: Runtime,
    instances: Instances = nobody_knows,
) -> Allocation:
    """Return the node's allocation. Raises ValueError if a shipped profile is bad, OSError."""
    moved = moved_on(Host(settings.node_root), settings, mounts=mounts_of(Path("/proc/self")))
    log.info(line("kept out of containers", besides_usual=list(map(str, moved))))
    host = Host(settings.node_root, moved=moved)
    profiles = Profiles(settings.profiles_directory)
    resolving = Resolving(
        {"nvidiaProc": NvidiaProc(host, instances=instances), "ascend": Ascend(host)}
    )
    beside_socket = settings.cri_socket.parent
    sources = ReaderSources(
        profiles=profiles,
        readers={
            "checkpoint": Answered(host),
            "cdi": Cdi(host, (settings.cdi_directory, settings.cdi_dynamic_directory)),
            "resolver": resolving,
            "bundle": Bundle(host, runtime, (beside_socket, beside_socket / "containerd")),
            "live": Live(host, runtime),
        },
        resolving=resolving,
        sandboxes=runtime,
    )
    return Allocation(
        checkpoint,
        pod_resources,
        sources=sources,
        libraries=Libraries(host, profiles),
        facts=Facts(profiles, settings.plugin_directory),
    )
