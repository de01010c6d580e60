# SPDX-License-Identifier: Apache-2.0
"""Tells the node agent, by a file, what the node lacks for a resource of which it has no device.

missing.json is {resource: sentence}. Several plugins may run on a node: each changes the entries of
its own resources only, under a lock, and takes them away when it ends.
"""

import fcntl
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from devicemount_plugin.config import ResourceName

FILE = "missing.json"
LOCK = ".missing.lock"

_log = logging.getLogger(__name__)

Missing = Mapping[ResourceName, str]


class Report:
    """The file's entries of this plugin's resources."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._written: Missing | None = None
        self._last_error = ""

    def write(self, missing: Missing) -> None:
        """Let the file say for each resource what is missing, or, if that is empty, nothing."""
        if missing == self._written:
            return
        try:
            with self._locked():
                self._replace(_read(self._directory / FILE), missing)
        except OSError as error:  # tried again with the next rescan
            if str(error) != self._last_error:
                _log.warning("missing devices not reported: %s", error)
            self._last_error = str(error)
            return
        self._written, self._last_error = dict(missing), ""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._directory / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held for a read and a write of a few bytes
            yield

    def _replace(self, before: Mapping[str, str], missing: Missing) -> None:
        others = {name: text for name, text in before.items() if name not in missing}
        own = {name: text for name, text in missing.items() if text}
        new = self._directory / f"{FILE}.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump({**others, **own}, file)
        new.replace(self._directory / FILE)


def _read(path: Path) -> Mapping[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
