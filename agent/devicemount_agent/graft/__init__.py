# SPDX-License-Identifier: Apache-2.0
"""Permission and nodes in a container that runs: granted, verified from inside, taken back."""
