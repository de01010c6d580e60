# SPDX-License-Identifier: Apache-2.0
"""Keeps the operator's certificate towards agents, and by default makes that of both sides.

Where something is mounted at the TLS directory, whoever mounted it is in charge: the files are
read again and again, and no Secret is touched. Otherwise both Secrets are the operator's own, and
each pass makes of them what `authority` says. Two, since a node may read every Secret that a pod on
it mounts: the agents' holds neither the authority's key nor the operator's. The operator's is
written first: it trusts an authority before any agent shows a certificate of it.
"""

import asyncio
import base64
import datetime
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from cryptography import x509

from devicemount_agent_api.identity import (
    UNREADABLE,
    Identity,
    MountedIdentity,
    is_signed_by,
    label,
    to_pem,
    utc_now,
)
from devicemount_agent_api.tls import OPERATOR_NAME
from devicemount_operator import errors
from devicemount_operator.agents import Agents
from devicemount_operator.authority import Certificates, Pair, Renewed, made_at, renewed
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide.observation import NodeName
from devicemount_operator.transport import JsonObject

log = logging.getLogger(__name__)

OPERATORS = "devicemount-operator-tls"  # Secrets
AGENTS = "devicemount-agent-tls"
MANAGED_BY = "app.kubernetes.io/managed-by"
LABELS = {"app.kubernetes.io/name": "devicemount", MANAGED_BY: "devicemount-operator"}
RETRY_S = 1.0  # somebody else wrote first, or the API server failed
NAMED = 8  # agents in a log line
SILENT = datetime.timedelta(minutes=10)  # an agent that says nothing is waited for no longer


class SecretNotOurs(errors.DeviceMountError):
    """A Secret of that name exists, and not this operator has made it."""


class Source(Protocol):
    """Where the operator's identity comes from."""

    async def identity(self) -> Identity | None:
        """Return what to show and whom to trust. Raises DeviceMountError."""

    def amiss(self) -> str:
        """Say why agents would not accept what `identity` returned last."""


class Keeper:
    """Gives the agents' channels what the source says, as long as this process leads."""

    def __init__(self, *, source: Source, agents: Agents, interval_s: float) -> None:
        self.looked = asyncio.Event()  # once: there is an identity, or a reason why there is none
        self._source = source
        self._agents = agents
        self._interval_s = interval_s
        self._amiss = "certificates are not read yet"

    def amiss(self) -> str:
        return self._amiss

    async def run(self) -> None:
        while True:
            try:
                await self._pass()
                pause_s = self._interval_s
            except errors.LeaseLost:
                raise
            except errors.DeviceMountError as error:
                self._say(str(error))
                pause_s = RETRY_S
            self.looked.set()
            await asyncio.sleep(pause_s)

    async def _pass(self) -> None:
        identity = await self._source.identity()
        self._say(self._source.amiss())
        if identity is not None:
            self._agents.use(identity)
        self._agents.keep_warm()

    def _say(self, amiss: str) -> None:
        if amiss and amiss != self._amiss:
            log.warning("certificates amiss: %s", amiss)
        self._amiss = amiss
        self._agents.lack(amiss)


class Mounted:
    """Certificates that others make and mount, cert-manager for example."""

    def __init__(self, directory: Path) -> None:
        self._mounted = MountedIdentity(directory)

    async def identity(self) -> Identity | None:
        return self._mounted.now_shown()

    def amiss(self) -> str:
        return self._mounted.amiss(OPERATOR_NAME)


class Own:
    """Certificates of an authority of our own, in two Secrets."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        agents: Agents,
        namespace: str,
        agents_listed: asyncio.Event,
        clock: Callable[[], datetime.datetime] = utc_now,
    ) -> None:
        self._cluster = cluster
        self._agents = agents
        self._namespace = namespace
        self._agents_listed = agents_listed
        self._clock = clock
        self._remembered = Certificates()  # outlives a Secret that somebody deletes
        self._waited_for: set[NodeName] = set()

    def amiss(self) -> str:
        return ""  # what is due is made anew before it is used

    async def identity(self) -> Identity:
        """Read both Secrets, make of them what they should be. Raises ApiError, SecretNotOurs."""
        now = self._clock()
        operator_secret, agent_secret = (
            await self._get(OPERATORS),
            await self._get(AGENTS),
        )
        have = self._have(operator_secret, agent_secret)
        want = renewed(have, known=await self._is_known(have, now=now), now=now)
        await self._put(OPERATORS, operator_secret, _operator_data(want))
        identity = Identity.from_pem(
            key=want.operator.key_pem,
            chain=want.operator.certificate_pem,
            authorities=to_pem(want.trusted),
        )
        self._agents.use(identity)  # before an agent can show what only this one trusts
        await self._put(AGENTS, agent_secret, _agent_data(want))
        _log_changes(have, want)
        self._remembered = Certificates(
            signing=want.signing, older=want.older, operator=want.operator, agents=want.agents
        )
        return identity

    def _have(self, operator: JsonObject | None, agent: JsonObject | None) -> Certificates:
        """Parse both. Where the operator's is gone or broken, what is known otherwise counts."""
        data, agents = _data(operator), _data(agent)
        trusted = _bundle(data)
        signing, shown = _signing(data, trusted), _pair(data)
        if signing is None:
            trusted += self._remembered.trusted + _bundle(agents)
            shown = shown or self._remembered.operator
        return Certificates(
            signing=signing,
            older=tuple(dict.fromkeys(trusted[1:] if signing else trusted)),
            operator=shown,
            agents=_pair(agents),
        )

    async def _is_known(self, have: Certificates, *, now: datetime.datetime) -> bool:
        """Tell whether every agent trusts the authority that signs: it shows a certificate of it.

        One that does not answer reads its Secret when it starts: it is waited for only a while.
        """
        if have.signing is None or not have.older or not self._agents_listed.is_set():
            return False
        signing = have.signing.certificate
        may_be_silent = now > made_at(signing) + SILENT
        hands = await self._agents.shake_hands()
        waited_for = {
            node
            for node in self._agents.nodes()
            if (hand := hands.get(node)) is None
            or not (may_be_silent if hand.shown is None else is_signed_by(hand.shown, signing))
        }
        if waited_for and waited_for != self._waited_for:
            some = ",".join(sorted(waited_for)[:NAMED])
            log.info("waiting for agents to follow count=%d nodes=%s", len(waited_for), some)
        self._waited_for = waited_for
        return not waited_for

    async def _get(self, name: str) -> JsonObject | None:
        key = ObjectKey(self._namespace, name)
        try:
            secret = await self._cluster.get_secret(key)
        except errors.NotFound:
            return None
        labels = secret["metadata"].get("labels") or {}
        if labels.get(MANAGED_BY) != LABELS[MANAGED_BY]:
            raise SecretNotOurs(
                f"Secret {name} in {self._namespace} was not made by this operator: delete it, or "
                "mount its counterpart in the operator's pod"
            )
        return secret

    async def _put(self, name: str, found: JsonObject | None, data: Mapping[str, bytes]) -> None:
        """Write what differs. Raises AlreadyExists or Conflict where somebody else wrote."""
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        if found is None:
            body: JsonObject = {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/tls",
                "metadata": {"name": name, "namespace": self._namespace, "labels": LABELS},
                "data": encoded,
            }
            await self._cluster.create_secret(self._namespace, body)
        elif found.get("data") != encoded:
            key = ObjectKey(self._namespace, name)
            await self._cluster.replace_secret(key, {**found, "data": encoded})


def _operator_data(want: Renewed) -> dict[str, bytes]:
    return {
        "tls.crt": want.operator.certificate_pem,
        "tls.key": want.operator.key_pem,
        "ca.crt": to_pem(want.trusted),
        "ca.key": want.signing.key_pem,
    }


def _agent_data(want: Renewed) -> dict[str, bytes]:
    return {
        "tls.crt": want.agents.certificate_pem,
        "tls.key": want.agents.key_pem,
        "ca.crt": to_pem(want.trusted),
    }


def _data(secret: JsonObject | None) -> dict[str, bytes]:
    """Return a Secret's content; the API server has checked that it is base64."""
    data = (secret or {}).get("data") or {}
    return {key: base64.b64decode(value) for key, value in data.items()}


def _bundle(data: Mapping[str, bytes]) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificates(data.get("ca.crt", b"")))
    except UNREADABLE:
        return ()


def _pair(data: Mapping[str, bytes]) -> Pair | None:
    return Pair.from_pem(certificate=data.get("tls.crt", b""), key=data.get("tls.key", b""))


def _signing(data: Mapping[str, bytes], trusted: tuple[x509.Certificate, ...]) -> Pair | None:
    """Return the authority whose key the Secret holds: the first of the bundle."""
    first = to_pem(trusted[:1])
    return Pair.from_pem(certificate=first, key=data.get("ca.key", b""))


def _log_changes(have: Certificates, want: Renewed) -> None:
    """One line for each thing that is another than before."""
    if want.signing != have.signing:
        log.info("made an authority name=%s", label(want.signing.certificate.subject))
    for what, before, now in (
        ("operator", have.operator, want.operator),
        ("agents", have.agents, want.agents),
    ):
        if now != before:
            issuer, end = label(now.certificate.issuer), now.certificate.not_valid_after_utc
            log.info("issued a certificate to=%s by=%s until=%s", what, issuer, end.isoformat())
    for one in have.older:
        if one not in want.older:
            log.info("stopped trusting an authority name=%s", label(one.subject))
