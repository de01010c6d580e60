# SPDX-License-Identifier: Apache-2.0
"""The command `devicemount-testbed`, also as `python -m devicemount_testbed`."""

from devicemount_testbed.cli import main

main()
