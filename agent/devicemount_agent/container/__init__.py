# SPDX-License-Identifier: Apache-2.0
"""The target container: found by CRI, held by pidfd, identified by its cgroup."""
