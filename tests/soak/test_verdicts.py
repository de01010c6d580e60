# SPDX-License-Identifier: Apache-2.0
"""Any filter, any list, many of them: the kernel says what the model says."""

import os

from node.agent import verdicts
from node.agent.conftest import v2
from node.agent.containers import Lab

__all__ = ["v2"]

EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "5000"))


def test_the_kernel_allows_what_is_listed_and_else_what_the_original_allows(v2: Lab) -> None:
    verdicts.agree(v2, examples=EXAMPLES)
