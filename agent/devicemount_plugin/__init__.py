# SPDX-License-Identifier: Apache-2.0
"""A generic device plugin, driven by a configuration file."""
