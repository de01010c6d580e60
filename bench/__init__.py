# SPDX-License-Identifier: Apache-2.0
"""`make bench`: how long a mount takes, against the floor that Kubernetes itself sets.

The floor is measured in the same run and on the same machine, because on any machine it is the
ratio that says what devicemount costs; milliseconds alone say what the machine is.
"""
