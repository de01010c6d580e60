# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes cluster in namespaces of one machine: a node for each kind of cgroup.

Tests use `devicemount_testbed.cluster.Testbed`; people use the command `devicemount-testbed`.
"""
