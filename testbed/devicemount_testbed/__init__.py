# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes cluster of two nodes in namespaces of one machine.

Tests use `devicemount_testbed.cluster.Testbed`; people use the command `devicemount-testbed`.
"""
