# SPDX-License-Identifier: Apache-2.0
"""What is known of each vendor: one YAML file a profile, shipped here or an administrator's."""
