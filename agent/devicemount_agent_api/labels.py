# SPDX-License-Identifier: Apache-2.0
"""The label by which an administrator lends a node: agent and plugin run there and nowhere else.

Manifests select by it, the operator names it in the command that helps; a test compares them.
"""

from typing import Final

ENABLED_LABEL: Final = "devicemount.io/enabled"
ENABLED_VALUE: Final = "true"
