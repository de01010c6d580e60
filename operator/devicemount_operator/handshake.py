# SPDX-License-Identifier: Apache-2.0
"""One TLS handshake with an agent, to see what it shows and whether it takes ours.

gRPC tells neither: a connection that does not come about is "unavailable", whoever's certificate it
is. Nothing is sent over this one, so the agent's certificate is read without being trusted.
"""

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography import x509

from devicemount_agent_api.identity import UNREADABLE, Identity, label, utc_now
from devicemount_agent_api.tls import AGENT_NAME, OPERATOR_NAME

TIMEOUT_S = 1.0  # of each step; an agent that lives answers within milliseconds
CHAIN_LIMIT = 10  # certificates that are looked at; who is not trusted may send anything


@dataclass(frozen=True, slots=True)
class Handshake:
    """What came of it."""

    shown: x509.Certificate | None = None  # None: nobody answers, or not in TLS
    refused: bool = False  # it ended the connection when it had seen ours
    by_way_of: tuple[x509.Certificate, ...] = ()  # what it sent with the one shown


def shake_hands(ip: str, port: int, identity: Identity) -> Handshake:
    """Connect, look, and close. Blocks for at most three times TIMEOUT_S; never raises OSError."""
    try:
        with (
            socket.create_connection((ip, port), TIMEOUT_S) as plain,
            _context(identity).wrap_socket(plain) as secured,
        ):
            shown, *others = _chain(secured)
            return Handshake(shown, _is_refused(secured), tuple(others))
    except (OSError, *UNREADABLE):
        return Handshake()


def explain(handshake: Handshake, identity: Identity, *, node: str) -> str:
    """Say whose certificate keeps operator and agent apart, and what to do; "" if none does."""
    now = utc_now()
    if handshake.shown is None:
        return ""
    ours = identity.own_fault(name=OPERATOR_NAME, now=now) if handshake.refused else ""
    wrong = identity.fault_of(
        handshake.shown, by_way_of=handshake.by_way_of, name=AGENT_NAME, now=now
    )
    if wrong and not ours:
        return (
            f"the certificate of the agent on node {node} {wrong}: "
            "renew the one in Secret devicemount-agent-tls; "
            "if that is another one already, wait until the agent has read it, or restart the agent"
        )
    if not handshake.refused:
        return ""
    ours = ours or f"is signed by {label(identity.leaf.issuer)}"
    return (
        f"the agent on node {node} refuses the operator's certificate, which {ours}: "
        "renew the one in Secret devicemount-operator-tls; "
        "if it is new, wait until the agent has read its own, or restart the agent"
    )


def _chain(secured: ssl.SSLSocket) -> list[x509.Certificate]:
    """Return what the agent sent, its own first."""
    # Public from Python 3.13 on; before it, only the first certificate is.
    sent = secured._sslobj.get_unverified_chain()[:CHAIN_LIMIT]  # type: ignore[attr-defined]
    return [x509.load_pem_x509_certificate(one.public_bytes().encode()) for one in sent]


def _is_refused(secured: ssl.SSLSocket) -> bool:
    """Wait until the agent speaks: with TLS 1.3 it judges our certificate after our part is done.

    One that takes it sends HTTP/2 settings; any other just ends the connection, and says not why.
    One that says nothing in time has not refused; its own certificate is known all the same.
    """
    try:
        return not secured.recv(1)
    except TimeoutError:
        return False
    except (ssl.SSLError, ConnectionError):
        return True


def _context(identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is looked at, and given nothing
    context.set_alpn_protocols(["h2"])
    with _file(identity.chain) as chain, _file(identity.key) as key:
        context.load_cert_chain(chain, key)
    return context


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """Lend a path to content that is only in memory: `ssl` takes nothing else."""
    fd = os.memfd_create("devicemount-tls", os.MFD_CLOEXEC)
    with os.fdopen(fd, "wb", buffering=0) as file:
        file.write(content)
        yield f"/proc/self/fd/{fd}"
