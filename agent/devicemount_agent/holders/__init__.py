# SPDX-License-Identifier: Apache-2.0
"""Who has a device open: found among all processes, ended where the device is lost."""
