# SPDX-License-Identifier: Apache-2.0
"""What a container is told by files: `/run/devicemount/<DeviceMount>.env` and `.ready`; pure.

A running process cannot be given environment variables, so whoever starts a new one reads them:
`. file` in a shell, an --env-file elsewhere. A value without characters that a shell minds stands
as it is, which every reader takes; any other is quoted for the shell.
"""

import hashlib
import re
import shlex
from collections.abc import Iterable

from devicemount_agent.errors import NotAllowed
from devicemount_agent.model import EnvVar

DIRECTORY = "/run/devicemount"  # in the target container
LIMIT_BYTES = 65536  # of one file: half of what Linux takes as one variable, far above any vendor's
STEM_LIMIT = 240  # NAME_MAX is 255, Kubernetes' names have up to 253 characters
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def env_name(mount_name: str) -> str:
    return f"{_stem(mount_name)}.env"


def ready_name(mount_name: str) -> str:
    return f"{_stem(mount_name)}.ready"


def env_text(variables: Iterable[EnvVar]) -> str:
    """Return the file's content. Of a name that comes twice, the later line wins with all readers.

    Raises NotAllowed for what a shell would not take for a variable, or too much of it.
    """
    lines = dict.fromkeys(map(_line, variables))
    text = "".join(lines)
    if len(text.encode()) > LIMIT_BYTES:
        raise NotAllowed(f"the devices' environment is longer than {LIMIT_BYTES} bytes")
    return text


def _stem(mount_name: str) -> str:
    """Return the name, or what is still one of its own where no file's name is that long."""
    if len(mount_name) <= STEM_LIMIT:
        return mount_name
    digest = hashlib.sha256(mount_name.encode()).hexdigest()
    return f"{mount_name[: STEM_LIMIT - 9]}-{digest[:8]}"


def _line(variable: EnvVar) -> str:
    if not _NAME.fullmatch(variable.name) or "\0" in variable.value:
        raise NotAllowed(f"{variable.name[:80]!r} is no environment variable that a shell takes")
    return f"{variable.name}={shlex.quote(variable.value) if variable.value else ''}\n"
