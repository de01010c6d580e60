# SPDX-License-Identifier: Apache-2.0
"""The API devicemount.io: pydantic models, and the CRD made from them."""
