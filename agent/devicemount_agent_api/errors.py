# SPDX-License-Identifier: Apache-2.0
"""How an agent's refusal travels: status code, sentence, and the reason in trailing metadata."""

from collections.abc import Iterable
from typing import cast

import grpc.aio

REASON_KEY = "devicemount-reason"  # the error's class name, which is the condition's reason


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Return the reason that an agent gave, or "" when the error is the transport's own."""
    metadata = cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ())
    for key, value in metadata:
        if key == REASON_KEY:
            return value.decode() if isinstance(value, bytes) else value
    return ""
