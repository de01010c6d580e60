# SPDX-License-Identifier: Apache-2.0
"""The operator: reserves devices by shadow pods and has the node agents graft them."""
