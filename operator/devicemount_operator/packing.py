# SPDX-License-Identifier: Apache-2.0
"""Objects of the API server as they are kept: as compressed text.

As dictionaries ten thousand DeviceMounts and their shadow pods take half a gigabyte, as this 20 MB;
opening one takes some 50 us, a tenth of a pass.
"""

import json
import zlib
from dataclasses import dataclass

from devicemount_operator.transport import JsonObject

FASTEST = 1  # of zlib: more saves little and takes twice the time


@dataclass(frozen=True, slots=True)
class Packed:
    """One object, with what says whether it is worth opening."""

    uid: str
    version: int
    text: bytes

    @classmethod
    def of(cls, raw: JsonObject) -> "Packed":
        """Pack all but who manages which field, half of an object, which nobody here reads."""
        kept = {**raw, "metadata": {**raw["metadata"], "managedFields": None}}
        text = zlib.compress(json.dumps(kept, separators=(",", ":")).encode("ascii"), FASTEST)
        return cls(raw["metadata"]["uid"], version_of(raw), text)

    @property
    def raw(self) -> JsonObject:
        """Return the object, newly parsed."""
        parsed: JsonObject = json.loads(zlib.decompress(self.text))
        return parsed


def version_of(raw: JsonObject) -> int:
    """Return an order among versions of one object.

    ResourceVersions count up (Kubernetes says so since 1.35).
    """
    version = str(raw["metadata"]["resourceVersion"])
    return int(version) if version.isdecimal() else 0
