# SPDX-License-Identifier: Apache-2.0
"""Shared libraries of the node, loaded into this process by their path."""

import ctypes
from pathlib import Path


def dlopen(path: Path) -> ctypes.CDLL:
    """Load a library; whoever asks for its soname from now on gets it. Raises OSError."""
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
