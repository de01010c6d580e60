# SPDX-License-Identifier: Apache-2.0
"""Mutual TLS between operator and agents: who may connect, and who may command.

Which certificates these are, and how they change while a process runs, is `identity`'s, which is
not imported here: the agent has no room for the library that parses them. A certificate of the
right CA is not enough: the agent serves only a peer whose certificate names the operator, so that
no agent can command another one with its own.
"""

from collections.abc import Iterable
from typing import Protocol

import grpc
import grpc.aio

OPERATOR_NAME = "devicemount-operator"  # DNS name in the operator's certificate
AGENT_NAME = "devicemount-agent"  # DNS name in every agent's certificate: all share one identity

RECONNECT_BACKOFF_MS = 200  # an agent that restarts is seen again this soon
CONNECT_MS = 2000  # for one attempt, handshake included: gRPC takes it from "min_reconnect_backoff"
NEVER_MS = 2**31 - 1
KEEPALIVE_MS = 10_000  # while a call lives: a stream that is silent is asked whether it is dead
KEEPALIVE_ANSWER_MS = 5_000  # gRPC 1.85 ends nothing by "keepalive_timeout", and takes a minute


class Shown(Protocol):
    """What one side shows and whom it trusts, in PEM."""

    @property
    def key(self) -> bytes: ...

    @property
    def chain(self) -> bytes: ...

    @property
    def trusted(self) -> bytes: ...


class Mounted(Protocol):
    """Where that comes from while it changes. Asked from any thread, raises nothing."""

    def now_shown(self) -> Shown | None: ...


def server_credentials(mounted: Mounted) -> grpc.ServerCredentials:
    """Return credentials that demand a client certificate, and follow what is mounted.

    There must be an identity already. The files are read at each handshake. gRPC is told only of
    what has changed: it replaces what its handshakes use each time it is told, and one that begins
    just then, in another thread, would read what is freed.
    """
    told = _now_shown(mounted)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal told
        now = _now_shown(mounted)
        if now == told:
            return None
        told = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(told),
        changed,  # type: ignore[arg-type]  # may return None, which the stubs do not know
        require_client_authentication=True,
    )


def _now_shown(mounted: Mounted) -> Shown:
    shown = mounted.now_shown()
    if shown is None:
        raise AssertionError("an identity that was read is never lost")
    return shown


def agent_channel(address: str, identity: Shown) -> grpc.aio.Channel:
    """Open a channel to the agent at `address` (host:port), which must prove to be an agent."""
    credentials = grpc.ssl_channel_credentials(identity.trusted, identity.key, identity.chain)
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
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.http2.ping_timeout_ms", KEEPALIVE_ANSWER_MS),
            ("grpc.http2.max_pings_without_data", 0),  # 0: as many as it takes
        ],
    )


def _configuration(identity: Shown) -> grpc.ServerCertificateConfiguration:
    pair = (identity.key, identity.chain)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=identity.trusted)


def is_operator(peer_names: Iterable[bytes]) -> bool:
    """Tell whether a verified certificate's subject alternative names include the operator's."""
    return OPERATOR_NAME.encode() in peer_names
