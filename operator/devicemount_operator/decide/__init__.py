# SPDX-License-Identifier: Apache-2.0
"""Pure decisions: an Observation in, a Decision out. No I/O, no clock, no kopf, no API server."""
