# SPDX-License-Identifier: Apache-2.0
"""Channels to the servers of this node, kubelet and runtime, that follow them when they restart."""

from pathlib import Path

import grpc.aio


def channel_to(socket: Path, *, message_limit_bytes: int) -> grpc.aio.Channel:
    """Open one warm channel to the server that listens there, now or later."""
    return grpc.aio.insecure_channel(
        f"unix://{socket}",
        options=[
            ("grpc.max_receive_message_length", message_limit_bytes),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", 0),
        ],
    )
