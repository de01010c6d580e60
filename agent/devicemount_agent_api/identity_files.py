# SPDX-License-Identifier: Apache-2.0
"""The three files of an identity, read as they were written together, and nothing known of what is
in them: the agent looks whether they changed without the library that understands certificates.
"""

from dataclasses import dataclass, field
from pathlib import Path

FILES = ("tls.key", "tls.crt", "ca.crt")
FILE_LIMIT_BYTES = 512 << 10  # a Secret, all of it, has no more than 1 MiB
DOCUMENT_LIMIT_BYTES = 32 << 20  # what `identity_process` reads or writes: some twenty such files


class BadIdentity(Exception):
    """What should be certificates is missing or none; the message names it."""


@dataclass(frozen=True, slots=True)
class IdentityFiles:
    """What is in them, whatever it is."""

    key: bytes = field(repr=False)  # for no log
    chain: bytes
    authorities: bytes

    @classmethod
    def from_directory(cls, directory: Path) -> "IdentityFiles":
        """Read the three files as they were written together. Raises BadIdentity."""
        data = directory / "..data"  # the kubelet replaces this link, never a file
        snapshot = data.resolve() if data.exists() else directory
        try:
            return cls(*(_content(snapshot / name) for name in FILES))
        except OSError as error:
            name = Path(str(error.filename)).name
            raise BadIdentity(f"{directory / name}: {error.strerror}") from error


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(FILE_LIMIT_BYTES + 1)
    if len(content) > FILE_LIMIT_BYTES:
        raise BadIdentity(f"{path} is larger than {FILE_LIMIT_BYTES >> 10} KiB")
    return content
