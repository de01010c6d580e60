# SPDX-License-Identifier: Apache-2.0
"""The node agent: grafts devices into running containers of this node and takes them back."""
