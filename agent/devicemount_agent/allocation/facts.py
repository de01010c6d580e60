# SPDX-License-Identifier: Apache-2.0
"""What is known of a resource on this node before anything of it is reserved.

From its profile, and from our own device plugin's file of what it does not find. The plugin is the
less trusted side: what it wrote is bounded, and becomes one plain line.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent.allocation.sources import env_needed
from devicemount_agent.kernel.files import beginning_of, regular_file
from devicemount_agent.logs import line, plain
from devicemount_agent.model import ResourceName
from devicemount_agent.profiles.store import Profiles

MISSING = "missing.json"
MISSING_LIMIT_BYTES = 64 << 10  # 64 resources with a sentence each
SENTENCE_LIMIT = 256

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResourceFacts:
    """As rpc Node says it."""

    resource: ResourceName
    profile: str
    is_serialised: bool
    env_only: str  # the sentence for an operator that has no acceptEnvFile; "": nothing
    refused: str  # why the resource is not served; "": it is
    driver_missing: str  # what the device plugin does not find; "": nothing


class Facts:
    """The node's profiles, and the device plugin's directory."""

    def __init__(self, profiles: Profiles, plugin_directory: Path) -> None:
        self._profiles = profiles
        self._missing = plugin_directory / MISSING
        self._version = (0, 0, 0)
        self._content: dict[str, object] = {}

    def about(self, resource: ResourceName) -> ResourceFacts:
        profile = self._profiles.usual(resource)
        critical = profile.env_critical
        return ResourceFacts(
            resource=resource,
            profile=profile.name,
            is_serialised=profile.serialised == "node",
            env_only=env_needed(resource, profile, critical) if critical else "",
            refused=profile.refused or "",
            driver_missing=self._driver_missing(resource),
        )

    def _driver_missing(self, resource: ResourceName) -> str:
        sentence = self._all_missing().get(resource, "")
        return plain(sentence, limit=SENTENCE_LIMIT) if isinstance(sentence, str) else ""

    def _all_missing(self) -> Mapping[str, object]:
        """Return the plugin's file, parsed once a version; nothing where it is none, said once."""
        try:
            with regular_file(self._missing, flags=os.O_NOFOLLOW) as fd:
                facts = os.fstat(fd)
                version = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
                if version != self._version:
                    self._content = {}
                    self._version = version
                    self._content = _parsed(beginning_of(fd, limit_bytes=MISSING_LIMIT_BYTES + 1))
        except FileNotFoundError:
            return {}  # our plugin does not run on this node: others' miss nothing that we know of
        except (OSError, ValueError, RecursionError) as error:
            log.warning(line("ignored", file=self._missing, error=error))
            return {}
        return self._content


def _parsed(raw: bytes) -> dict[str, object]:
    if len(raw) > MISSING_LIMIT_BYTES:
        raise ValueError("is too long")
    content = json.loads(raw)
    if not isinstance(content, dict):
        raise ValueError("is no object")
    return content
