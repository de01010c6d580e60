# SPDX-License-Identifier: Apache-2.0
"""`hold` as the image has it."""

from node.agent.conftest import hold

__all__ = ["hold"]
