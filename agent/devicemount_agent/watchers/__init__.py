# SPDX-License-Identifier: Apache-2.0
"""What the agent notices by itself: each module notices one thing and tells mounts."""
