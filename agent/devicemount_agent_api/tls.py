# SPDX-License-Identifier: Apache-2.0
"""Mutual TLS between operator and agents: who may connect, and who may command.

Both sides hold `tls.crt`, `tls.key` and `ca.crt` in one directory, wherever they come from. A
certificate of the right CA is not enough: the agent serves only a peer whose certificate names the
operator, so that no agent can command another one with its own.
"""

from collections.abc import Iterable
from pathlib import Path

import grpc
import grpc.aio

OPERATOR_NAME = "devicemount-operator"  # DNS name in the operator's certificate
AGENT_NAME = "devicemount-agent"  # DNS name in every agent's certificate: all share one identity

RECONNECT_BACKOFF_MS = 200  # an agent that restarts is seen again this soon
CONNECT_MS = 2000  # for one attempt, handshake included: gRPC takes it from "min_reconnect_backoff"
NEVER_MS = 2**31 - 1


def _read(directory: Path) -> tuple[bytes, bytes, bytes]:
    key, certificate, authority = (
        (directory / name).read_bytes() for name in ("tls.key", "tls.crt", "ca.crt")
    )
    return key, certificate, authority


def server_credentials(directory: Path) -> grpc.ServerCredentials:
    """Return credentials that demand a client certificate. Raises OSError if a file is missing."""
    key, certificate, authority = _read(directory)
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=authority, require_client_auth=True
    )


def agent_channel(address: str, directory: Path) -> grpc.aio.Channel:
    """Open a channel to the agent at `address` (host:port), which must prove to be an agent."""
    key, certificate, authority = _read(directory)
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    return grpc.aio.secure_channel(
        address,
        credentials,
        options=[
            ("grpc.ssl_target_name_override", AGENT_NAME),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_BACKOFF_MS),
            ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MS),
            ("grpc.client_idle_timeout_ms", NEVER_MS),  # warm, however long nobody mounts
        ],
    )


def is_operator(peer_names: Iterable[bytes]) -> bool:
    """Tell whether a verified certificate's subject alternative names include the operator's."""
    return OPERATOR_NAME.encode() in peer_names
