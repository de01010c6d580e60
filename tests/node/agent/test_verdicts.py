# SPDX-License-Identifier: Apache-2.0
"""Any filter, any list: the kernel says what the model says."""

from . import verdicts
from .containers import Lab

EXAMPLES = 25


def test_the_kernel_allows_what_is_listed_and_else_what_the_original_allows(v2: Lab) -> None:
    verdicts.agree(v2, examples=EXAMPLES)
