# SPDX-License-Identifier: Apache-2.0
"""What a forked operator runs: as few imports as possible, since it pays for them itself."""

import os
import sys
from pathlib import Path

from devicemount_operator.__main__ import main_with
from devicemount_operator.settings import Settings


def operate(settings: Settings, environment: dict[str, str], log: Path) -> None:
    """Be an operator with that environment, and log there."""
    os.environ.clear()
    os.environ.update(environment)
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    main_with(settings)
