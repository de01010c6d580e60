# SPDX-License-Identifier: Apache-2.0
"""Generated clients of the kubelet and the container runtime: `make proto`."""
