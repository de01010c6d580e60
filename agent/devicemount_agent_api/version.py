# SPDX-License-Identifier: Apache-2.0
"""The one version of all parts: they are released together. Images and manifests are compared."""

from typing import Final

VERSION: Final = "0.1.0"
