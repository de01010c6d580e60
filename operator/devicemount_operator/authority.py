# SPDX-License-Identifier: Apache-2.0
"""The operator's own authority: what its certificates should be, given what they are. Pure.

The first of the authorities signs; all of them are trusted. A new one is trusted before anything
signed by it must be: agents get their new certificate together with the new bundle, so whoever
shows one signed by the new authority trusts it. Only when every agent does (`known`) the operator
shows such a certificate too, and after that the former authority is trusted no more.
"""

import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from devicemount_agent_api.identity import UNREADABLE, dns_names, is_signed_by, to_pem
from devicemount_agent_api.tls import AGENT_NAME, OPERATOR_NAME

AUTHORITY_LIFE = datetime.timedelta(days=5 * 365)
LEAF_LIFE = datetime.timedelta(days=365)
RENEW_BEFORE = datetime.timedelta(days=60)
LAST_MOMENT = datetime.timedelta(days=30)  # agents that do not follow are waited for no longer
CLOCK_SKEW = datetime.timedelta(hours=1)  # of a node whose clock is late


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def from_pem(cls, *, certificate: bytes, key: bytes) -> "Pair | None":
        """Parse what an earlier operator wrote; None for anything else."""
        try:
            parsed = x509.load_pem_x509_certificate(certificate)
            private = load_pem_private_key(key, password=None)
            fits = private.public_key() == parsed.public_key()
        except UNREADABLE:
            return None
        if fits and isinstance(private, ec.EllipticCurvePrivateKey):
            return cls(parsed, private)
        return None

    @property
    def certificate_pem(self) -> bytes:
        return to_pem([self.certificate])

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """What both Secrets hold, as far as it is usable."""

    signing: Pair | None = None
    older: tuple[x509.Certificate, ...] = ()  # trusted, and sign nothing any more
    operator: Pair | None = None
    agents: Pair | None = None

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        return (self.signing.certificate, *self.older) if self.signing else self.older


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """What both Secrets should hold."""

    signing: Pair
    older: tuple[x509.Certificate, ...]
    operator: Pair
    agents: Pair

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        return (self.signing.certificate, *self.older)


def renewed(have: Certificates, *, known: bool, now: datetime.datetime) -> Renewed:
    """Return what they should be. `known`: every agent trusts the authority that signs."""
    signing = have.signing
    if signing is None or not _lasts(signing.certificate, RENEW_BEFORE, now=now):
        signing, known = make_authority(now=now), False
    older = tuple(
        one for one in have.trusted if one != signing.certificate and one.not_valid_after_utc > now
    )
    is_former = any(is_signed_by(have.operator.certificate, one) for one in older if have.operator)
    operator = _operator(have.operator, signing, waits=is_former and not known, now=now)
    if known and operator == have.operator:
        older = ()  # nobody has shown a certificate of theirs since the last pass
    return Renewed(
        signing=signing,
        older=older,
        operator=operator,
        agents=_agents(have.agents, signing, now=now),
    )


def make_authority(*, now: datetime.datetime) -> Pair:
    """Make one with a name of its own, so that messages tell it from the one before."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    name = _name(f"devicemount-ca-{serial:040x}"[:23])
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, serial_number=serial)
        .public_key(key.public_key())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate, key)


def issue(signing: Pair, *, name: str, usage: ObjectIdentifier, now: datetime.datetime) -> Pair:
    """Issue a certificate for that DNS name, which ends no later than its authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority_key = signing.key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(signing.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(min(now + LEAF_LIFE, signing.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key), critical=False
        )
        .sign(signing.key, hashes.SHA256())
    )
    return Pair(certificate, key)


def made_at(authority: x509.Certificate) -> datetime.datetime:
    """Return when `make_authority` made it."""
    return authority.not_valid_before_utc + CLOCK_SKEW


def _operator(have: Pair | None, signing: Pair, *, waits: bool, now: datetime.datetime) -> Pair:
    """Return the operator's certificate; one of a former authority as long as agents need it."""
    if have is not None and OPERATOR_NAME in dns_names(have.certificate):
        if is_signed_by(have.certificate, signing.certificate):
            stays = _lasts(have.certificate, RENEW_BEFORE, now=now)
        else:
            stays = waits and _lasts(have.certificate, LAST_MOMENT, now=now)
        if stays:
            return have
    return issue(signing, name=OPERATOR_NAME, usage=ExtendedKeyUsageOID.CLIENT_AUTH, now=now)


def _agents(have: Pair | None, signing: Pair, *, now: datetime.datetime) -> Pair:
    if (
        have is not None
        and AGENT_NAME in dns_names(have.certificate)
        and is_signed_by(have.certificate, signing.certificate)
        and _lasts(have.certificate, RENEW_BEFORE, now=now)
    ):
        return have
    return issue(signing, name=AGENT_NAME, usage=ExtendedKeyUsageOID.SERVER_AUTH, now=now)


def _lasts(
    certificate: x509.Certificate, needed: datetime.timedelta, *, now: datetime.datetime
) -> bool:
    starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return starts <= now and now + needed < ends


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
