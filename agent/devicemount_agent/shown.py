# SPDX-License-Identifier: Apache-2.0
"""Which env and ready files each container is shown: said anew from the ledger after each change,
so that what a file says was so when it was written.

`.ready` stands while all that a DeviceMount asked for is verified in the container: it comes last
and goes first. Whether that was so before a restart of the agent, the file itself tells.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from devicemount_agent.graft import edits
from devicemount_agent.graft.env_file import DIRECTORY, env_name, env_text, ready_name
from devicemount_agent.graft.files import Files
from devicemount_agent.graft.places import Places
from devicemount_agent.graft.target import Container
from devicemount_agent.ledger import Grant, Ledger, Stage
from devicemount_agent.logs import line
from devicemount_agent.model import Bound, ContainerID, PodUID
from devicemount_agent.requests import MountKey

log = logging.getLogger(__name__)


class Shown:
    """The files of all containers."""

    def __init__(
        self,
        files: Files,
        *,
        ledger: Callable[[], Ledger],
        live: Collection[PodUID],
        doubtful: Collection[PodUID],
    ) -> None:
        """`live` and `doubtful` are the caller's, who changes them."""
        self._files = files
        self._ledger = ledger
        self._live = live
        self._doubtful = doubtful
        self._complete: set[MountKey] = set()
        self._planned: Counter[ContainerID] = Counter()

    def note_complete(self, key: MountKey) -> None:
        """Take note that all that was asked for is granted."""
        self._complete.add(key)

    def note_incomplete(self, key: MountKey) -> None:
        self._complete.discard(key)

    def is_incomplete(self, key: MountKey) -> bool:
        """Tell whether, where a ready file has a place, not all is known to be granted."""
        return key not in self._complete and any(map(self._has_place, self._ledger().of_mount(key)))

    def update(self, container_id: ContainerID) -> None:
        """Make the files of a container what is so now. Raises OSError."""
        grants = [g for g in self._ledger().in_container(container_id) if self._has_place(g)]
        if not grants:
            return
        wanted: dict[str, str] = {}
        for grant in (grant for grant in grants if grant.shadow.uid in self._live):
            text = env_text(grant.edits().env)
            name = env_name(grant.mount_name)
            if text and text not in wanted.get(name, ""):
                wanted[name] = wanted.get(name, "") + text
            if self._is_ready(grant.key, container_id):
                wanted[ready_name(grant.mount_name)] = ""
        self._files.show(container_id, wanted)

    def update_all(self, grants: Iterable[Grant]) -> None:
        """The same for several, where a file must not keep access from ending."""
        for container_id in {grant.container_id for grant in grants}:
            try:
                self.update(container_id)
            except OSError as error:
                log.error(line("left files", container=container_id[:12], error=error))

    def env_file(self, grant: Grant) -> str:
        """Return the env file's path in the container; empty: there is none."""
        has_one = bool(grant.edits().env) and self._has_place(grant)
        return f"{DIRECTORY}/{env_name(grant.mount_name)}" if has_one else ""

    @contextmanager
    def needed_in(self, container_id: ContainerID) -> Iterator[None]:
        """Keep a container's files while a grant in it is planned; forget them if it fails."""
        self._planned[container_id] += 1
        try:
            yield
        except BaseException:
            self._planned[container_id] -= 1
            self.forget(container_id)
            raise
        self._planned[container_id] -= 1

    def forget(self, container_id: ContainerID) -> None:
        """Remove a container's files when no grant is left in it, nor planned."""
        if not self._ledger().in_container(container_id) and not self._planned[container_id]:
            del self._planned[container_id]
            self._files.forget(container_id)

    def found_in(self, container: Container) -> frozenset[Bound]:
        """Return the mount by which a container is shown its files, whether or not it was noted.

        Raises OSError, DeviceMountError.
        """
        return edits.shown(Places(container), self._files)

    def reread(self) -> None:
        """See at the start which mounts were complete."""
        for container_id in self._files.containers():
            names = self._files.names(container_id)
            self._complete |= {
                grant.key
                for grant in self._ledger().in_container(container_id)
                if ready_name(grant.mount_name) in names
            }

    def forget_unneeded(self) -> None:
        """Forget the files that no grant needs."""
        for container_id in self._files.containers():
            self.forget(container_id)

    def _has_place(self, grant: Grant) -> bool:
        """Tell whether the container is shown its directory of files by this grant."""
        directory = str(self._files.shown(grant.container_id))
        return any(bound.host_path == directory for bound in grant.bound)

    def _is_ready(self, key: MountKey, container_id: ContainerID) -> bool:
        """Tell whether all of a mount is granted and can be used."""
        grants = self._ledger().of_mount(key)
        return key in self._complete and all(
            grant.container_id == container_id
            and grant.stage is Stage.COMMITTED
            and grant.shadow.uid in self._live
            and grant.shadow.uid not in self._doubtful
            and not grant.withheld
            for grant in grants
        )
