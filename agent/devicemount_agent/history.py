# SPDX-License-Identifier: Apache-2.0
"""What has happened to grants since this agent has run: told besides what is so, never acted upon.

An agent that starts anew counts from nothing again, so who reads a count looks at how it rises.
"""

from collections import Counter

from devicemount_agent.model import Concern, PodUID


class History:
    """Of all grants, by their shadow pods."""

    def __init__(self) -> None:
        self.repairs: Counter[PodUID] = Counter()  # access given again that somebody had taken
        self.restarts: Counter[PodUID] = Counter()  # granted again to the container's next run
        self.losses: dict[PodUID, Concern] = {}  # why the reservation is gone

    def forget(self, uid: PodUID) -> None:
        """Let go of what is told of a grant that has ended."""
        self.repairs.pop(uid, None)
        self.restarts.pop(uid, None)
        self.losses.pop(uid, None)
