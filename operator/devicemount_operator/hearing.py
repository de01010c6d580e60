# SPDX-License-Identifier: Apache-2.0
"""Whether kopf's watch tells us what is so.

Kopf keeps its streams to itself, and one that is deaf looks like one on which nothing happens. So
what an own LIST shows is compared with what was told: a version that is not heard of for long was
missed, by whatever is between the API server and our handler.
"""

from typing import Final

from devicemount_operator.packing import version_of
from devicemount_operator.reflector import Listed
from devicemount_operator.transport import JsonObject

PATIENCE_S: Final = 90.0  # a stream that is silent is opened again after 70 s, and lists


class Hearing:
    """What was told of each DeviceMount, and what was not yet."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}
        self._awaited: dict[str, tuple[int, float]] = {}  # version, monotonic time of the LIST

    def told(self, raw: JsonObject) -> None:
        """Note that the watch has told of this version."""
        uid, version = raw["metadata"]["uid"], version_of(raw)
        self._told[uid] = max(version, self._told.get(uid, 0))
        if uid in self._awaited and self._awaited[uid][0] <= version:
            del self._awaited[uid]

    def gone(self, uid: str) -> None:
        self._told.pop(uid, None)
        self._awaited.pop(uid, None)

    def compare(self, listed: Listed, *, now: float) -> None:
        """Note what the LIST shows and the watch has not told."""
        versions = {packed.uid: packed.version for packed in listed.objects}
        for uid in self._told.keys() - versions.keys():
            self.gone(uid)  # one made since then is told again with its next change
        self._awaited = {
            uid: self._awaited.get(uid, (version, now))
            for uid, version in versions.items()
            if version > self._told.get(uid, 0)
        }

    def missed(self, *, now: float) -> int:
        """Return of how many objects the watch should have told long ago."""
        return sum(now - since > PATIENCE_S for _, since in self._awaited.values())
