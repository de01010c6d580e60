# SPDX-License-Identifier: Apache-2.0
"""What one side shows (a certificate with its key) and whom it trusts, from files that change while
it runs.

A bundle that shares an authority with the one before is somebody's managed change: taken as it is.
One that shares none replaces all trust at once, as cert-manager does when its authority changed,
and reaches each peer at another time. Then what was trusted stays trusted until it expires or the
process ends, and the former certificate is shown for HOLD more: by then every peer has read its
own. A process that starts within that time has only the new.
"""

import datetime
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from devicemount_agent_api.identity_files import BadIdentity, IdentityFiles

HOLD = datetime.timedelta(
    minutes=10
)  # kubelets deliver a Secret within two, one that restarts later
SPARE = datetime.timedelta(minutes=1)  # before its end a certificate is shown no more, if possible
UNREADABLE = (  # whatever is wrong with what should be certificates and keys
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
REMEMBERED = 8  # former authorities: bounds what a rotation gone wild costs


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True, slots=True)
class Identity:
    """Certificate, key, trusted authorities. Made by `from_pem`, which checks that they fit."""

    key: bytes = field(repr=False)  # for no log
    chain: bytes  # PEM, the leaf first
    leaf: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]
    authorities: tuple[x509.Certificate, ...]

    @classmethod
    def from_pem(cls, *, key: bytes, chain: bytes, authorities: bytes) -> "Identity":
        """Parse and check. Raises BadIdentity; that a certificate is valid now is not asked."""
        leaf, *intermediates = _certificates(chain, what="tls.crt")
        if not _is_key_of(key, leaf):
            raise BadIdentity("tls.key is not the key of the certificate in tls.crt")
        trusted = tuple(_certificates(authorities, what="ca.crt"))
        return cls(key, chain, leaf, tuple(intermediates), trusted)

    @classmethod
    def from_directory(cls, directory: Path) -> "Identity":
        """Read the three files as they were written together. Raises BadIdentity."""
        files = IdentityFiles.from_directory(directory)
        try:
            return cls.from_pem(key=files.key, chain=files.chain, authorities=files.authorities)
        except BadIdentity as error:
            raise BadIdentity(f"in {directory}: {error}") from error

    @property
    def trusted(self) -> bytes:
        """The trusted authorities in PEM."""
        return to_pem(self.authorities)

    def own_fault(self, *, name: str, now: datetime.datetime) -> str:
        """Say what is wrong with the own certificate for a peer that trusts the same."""
        return self.fault_of(self.leaf, by_way_of=self.intermediates, name=name, now=now)

    def fault_of(
        self,
        leaf: x509.Certificate,
        *,
        by_way_of: Sequence[x509.Certificate],
        name: str,
        now: datetime.datetime,
    ) -> str:
        """Say what is wrong with a certificate, and the intermediates that are shown with it, for
        who trusts what this one trusts.

        It is what follows "the certificate ...", "" if nothing is wrong.
        """
        try:
            return self._fault_of(leaf, by_way_of=by_way_of, name=name, now=now)
        except UNREADABLE as error:  # found late: parts of a certificate are parsed when asked for
            return f"cannot be read ({str(error)[:128]})"

    def _fault_of(
        self,
        leaf: x509.Certificate,
        *,
        by_way_of: Sequence[x509.Certificate],
        name: str,
        now: datetime.datetime,
    ) -> str:
        if now >= leaf.not_valid_after_utc:
            return f"expired at {_time(leaf.not_valid_after_utc)}"
        if now < leaf.not_valid_before_utc:
            return f"is not valid before {_time(leaf.not_valid_before_utc)}"
        if name not in (names := dns_names(leaf)):
            return f"is for {', '.join(names)[:128] or 'no DNS name'}, not for {name}"
        weakest = _weakest_above(leaf, by_way_of=by_way_of, authorities=self.authorities)
        if weakest is None:
            trusted = ", ".join(label(a.subject) for a in self.authorities)
            return f"is signed by {label(leaf.issuer)}, which is not trusted here: {trusted} is"
        if now >= (end := weakest.not_valid_after_utc):
            return f"is signed by {label(weakest.subject)}, which expired at {_time(end)}"
        return ""


@dataclass(frozen=True, slots=True)
class Held:
    """A former identity that peers still know."""

    identity: Identity
    until: datetime.datetime


@dataclass(frozen=True, slots=True)
class Succession:
    """The newest identity, and what remains of those before it."""

    newest: Identity
    former: Held | None = None  # shown instead for a while
    kept: tuple[x509.Certificate, ...] = ()  # trusted besides the newest's, until they expire

    def followed_by(self, newest: Identity, *, now: datetime.datetime) -> "Succession":
        """Take in what was read; see the module for the rule."""
        before = self.newest
        if newest == before:
            return self
        if set(newest.authorities) & set(before.authorities):
            return replace(self, newest=newest)
        shown = self.shown(now=now)
        return Succession(
            newest=newest,
            former=Held(shown, until=min(now + HOLD, shown.leaf.not_valid_after_utc - SPARE)),
            kept=(*before.authorities, *self.kept)[:REMEMBERED],
        )

    def shown(self, *, now: datetime.datetime) -> Identity:
        """Return what to show and whom to trust now."""
        leaf = self.former.identity if self.former and now < self.former.until else self.newest
        trusted = list(self.newest.authorities)
        trusted += [a for a in self.kept if a not in trusted and a.not_valid_after_utc > now]
        return replace(leaf, authorities=tuple(trusted))

    def next_change(self, *, now: datetime.datetime) -> datetime.datetime | None:
        """Return when time alone may change what is shown or what is wrong with it."""
        shown = self.shown(now=now)
        moments = [shown.leaf.not_valid_before_utc, shown.leaf.not_valid_after_utc]
        moments += [a.not_valid_after_utc for a in (*shown.intermediates, *shown.authorities)]
        moments += [self.former.until] if self.former else []
        return min((moment for moment in moments if moment > now), default=None)


class MountedIdentity:
    """The identity in a directory, read anew each time; broken files leave the last good one.

    May be asked from any thread, never raises.
    """

    def __init__(
        self,
        directory: Path,
        *,
        known: Succession | None = None,
        clock: Callable[[], datetime.datetime] = utc_now,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._lock = threading.Lock()
        self._succession = known
        self._unread = ""

    @property
    def succession(self) -> Succession | None:
        """What was read so far; to be handed to another process as `known`."""
        return self._succession

    def now_shown(self) -> Identity | None:
        """Read the files, and return what to show and whom to trust; None before there was any."""
        with self._lock:
            now = self._clock()
            try:
                read = Identity.from_directory(self._directory)
            except BadIdentity as error:
                self._unread = str(error)
            else:
                self._unread = ""
                known = self._succession
                self._succession = known.followed_by(read, now=now) if known else Succession(read)
            return self._succession.shown(now=now) if self._succession else None

    def amiss(self, name: str) -> str:
        """Say why peers would not accept it under that DNS name, "" if they would."""
        shown = self.now_shown()
        if shown is None or self._unread:
            return self._unread
        wrong = shown.own_fault(name=name, now=self._clock())
        return f"the certificate in {self._directory} {wrong}" if wrong else ""


def is_signed_by(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    """Tell whether the authority's key signed the certificate, under its name."""
    try:
        leaf.verify_directly_issued_by(authority)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True


def dns_names(leaf: x509.Certificate) -> list[str]:
    """Return the DNS names among its subject alternative names."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (*UNREADABLE, x509.ExtensionNotFound):
        return []
    return names.get_values_for_type(x509.DNSName)


def label(name: x509.Name) -> str:
    """Return a name as people write it, bounded: a foreign certificate may say anything."""
    return name.rfc4514_string()[:128] or "nobody"


def to_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def _weakest_above(
    leaf: x509.Certificate,
    *,
    by_way_of: Sequence[x509.Certificate],
    authorities: Sequence[x509.Certificate],
) -> x509.Certificate | None:
    """Return what ends first of those between a certificate and a trusted authority.

    The chain that lasts longest counts; None where none leads to an authority.
    """
    weakest = {one: one for one in authorities}  # of each that is trusted, and those above it
    left = set(by_way_of) - set(weakest)
    while found := {one: above for one in left if (above := _longest(one, weakest))}:
        weakest |= {one: min(one, above, key=_end) for one, above in found.items()}
        left -= set(found)
    return _longest(leaf, weakest)


def _longest(
    signed: x509.Certificate, weakest: Mapping[x509.Certificate, x509.Certificate]
) -> x509.Certificate | None:
    above = [last for one, last in weakest.items() if is_signed_by(signed, one)]
    return max(above, key=_end, default=None)


def _end(certificate: x509.Certificate) -> datetime.datetime:
    return certificate.not_valid_after_utc


def _certificates(pem: bytes, *, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except UNREADABLE as error:
        raise BadIdentity(f"{what} holds no certificate that can be read: {error}") from error


def _is_key_of(pem: bytes, leaf: x509.Certificate) -> bool:
    try:
        key = load_pem_private_key(pem, password=None)
    except UNREADABLE as error:
        raise BadIdentity(f"tls.key holds no private key that can be read: {error}") from error
    try:
        return key.public_key() == leaf.public_key()
    except UNREADABLE as error:
        raise BadIdentity(f"tls.crt holds a key of an unknown kind: {error}") from error


def _time(when: datetime.datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
