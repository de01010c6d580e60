# SPDX-License-Identifier: Apache-2.0
"""What the kubelet gave to a shadow pod."""
