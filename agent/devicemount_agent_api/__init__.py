# SPDX-License-Identifier: Apache-2.0
"""The contract between operator and node agent: the only package that both import."""
