# SPDX-License-Identifier: Apache-2.0
"""Says when it is worth while to look at permissions (ADR 17).

On cgroup v2 whoever replaces a filter loads a program first, and the kernel numbers programs in
turn; on v1 whoever changes rules writes to a file. Neither tells whose they were, and some changes
tell nothing: all containers are looked at in the second after, and once a second anyway.
"""

import math
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from devicemount_agent.bell import Bell, Hung
from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.graft.standing import Eye
from devicemount_agent.kernel import inotify
from devicemount_agent.kernel.bpf import newest_program

STIRRED_S = 1.0  # after something told of a change it is always worth while
CALM_S = 1.0  # then, so often


class Stir:
    """Of all containers with an eye on them."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._hung: dict[Path, Hung] = {}  # where rules may be written
        self._has_rung = False
        self._has_filters = False  # some are on v2
        self._newest_program = 0
        self._stirred_s = self._looked_s = -math.inf

    def follow(self, eyes: Collection[Eye]) -> None:
        """Hear of these containers, and of no others. In the event loop."""
        self._has_filters = any(eye.standing.version is CgroupVersion.V2 for eye in eyes)
        directories = {directory for eye in eyes for directory in eye.written_in}
        for directory in self._hung.keys() - directories:
            self._bell.take_down(self._hung.pop(directory))
        for directory in directories - self._hung.keys():
            with suppress(FileNotFoundError):  # its end: the eye sees it too
                hung = self._bell.hang(directory, self._ring, mask=inotify.IN_MODIFY)
                self._hung[directory] = hung
                self._ring()  # it may have been written to a moment ago

    def look(self) -> None:
        """Take it for worth while the next time."""
        self._looked_s = -math.inf

    def is_due(self, now_s: float) -> bool:
        """Say whether to look now; whoever asks does. In one thread at a time. Raises OSError."""
        if self._is_told():
            self._stirred_s = now_s
        if self._stirred_s + STIRRED_S <= now_s < self._looked_s + CALM_S:
            return False
        self._looked_s = now_s
        return True

    def _ring(self) -> None:
        self._has_rung = True

    def _is_told(self) -> bool:
        """Say whether anything has told of a change since it was asked last."""
        if has_rung := self._has_rung:
            self._has_rung = False
        if not self._has_filters:
            return has_rung
        former, self._newest_program = self._newest_program, newest_program(self._newest_program)
        return has_rung or self._newest_program != former
