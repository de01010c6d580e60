# SPDX-License-Identifier: Apache-2.0
"""Raw system calls and nothing else: constants by kernel name, one short wrapper per call."""
